#!/bin/bash
# Two machines of eight GPUs under Slurm:    sbatch recipes/hardware/slurm.sh classifier train.num_train_epochs=5
# Submit from the project's folder, after `make setup` there: project and RUNS lie on a file system that all nodes share.
# Slurm types on each node what multi-node.yaml tells you to type. At the time limit, and on `scancel --signal=TERM`,
# training finishes its update and saves; the same sbatch line goes on from there.
#SBATCH --job-name=insource
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=12:00:00
#SBATCH --signal=TERM@180
#SBATCH --output=%x-%j.log
set -euo pipefail

RECIPE=${1:-classifier}
shift || true
FIRST=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# A port of its own for each job, so that two jobs may share a node.
PORT=$((20000 + SLURM_JOB_ID % 20000))
export HARDWARE=multi-node
export RUNS=${RUNS:-$PWD/runs}

# --wait: where one node has ended, the others have ten minutes to do so, and do not keep the job for nothing.
srun --wait=600 --kill-on-bad-exit=0 bash -c '
  exec .venv/bin/python -m train "$@" accelerate.machine_rank="$SLURM_NODEID"
' train "$RECIPE" "$@" \
  accelerate.num_machines="$SLURM_NNODES" \
  accelerate.main_process_ip="$FIRST" \
  accelerate.main_process_port="$PORT"
