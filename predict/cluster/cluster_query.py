"""The rows of a prediction to the workers of a Ray cluster; the driver, this process, journals and writes them."""

import os
from typing import Any

from predict.cluster import connection
from predict.cluster.worker import OMP_VARIABLE, Worker, WorkerEngine, WorkerSetup
from predict.cluster.worker_pool import WorkerPool
from predict.engines import clients
from predict.execution.job_execution import JobExecution, log_step
from serve.vllm.launch_plan import ServedModel

MAX_CALLS_PER_WORKER = 1000
"""Concurrent calls that Ray allows; the pool sets the number of shards in flight."""


def make_engine(execution: JobExecution, served: ServedModel) -> WorkerEngine:
    """Return the server that each worker starts."""
    log_folder = execution.state.folder.resolve()
    return WorkerEngine(served, execution.job.recipe.serve, log_folder, os.environ.get(OMP_VARIABLE))


async def query_rows(execution: JobExecution, engine: WorkerEngine | str) -> None:
    """Query all rows without an answer on disk on the cluster.

    `engine`: the server that each worker starts, or the address of a running one. Raise RecipeError and StageError.
    """
    job, recipe = execution.job, execution.job.recipe
    with connection.connect_cluster() as ray:
        n_workers = job.workers or connection.count_workers(ray, recipe)
        setup = WorkerSetup(clients.as_served(execution.task), execution.labels, recipe.compare.concurrency, engine)
        needs_gpu = not isinstance(engine, str) and not recipe.accelerate.use_cpu
        # A lost worker is replaced by the pool: Ray would repeat its calls only on the worker that it restarts itself,
        # which waits for a node if none is free.
        actor = ray.remote(Worker).options(
            num_cpus=1,
            num_gpus=1 if needs_gpu else 0,
            max_restarts=0,
            max_task_retries=0,
            max_concurrency=MAX_CALLS_PER_WORKER,
            scheduling_strategy="SPREAD",
        )
        pool = WorkerPool(
            start_worker=lambda: actor.remote(setup),
            stop_worker=lambda worker: _stop_worker(ray, worker),
            worker_errors=(ray.exceptions.RayError,),
            n_workers=n_workers,
            worker_concurrency=recipe.compare.concurrency,
        )
        driver_ip = str(ray.util.get_node_ip_address())
        pool.check_node = lambda node_ip: connection.check_node_allowed(node_ip, driver_ip, recipe)
        n_nodes = sum(node["Alive"] for node in ray.nodes())
        log_step("workers", f"{n_workers} on a Ray cluster of {n_nodes} {'node' if n_nodes == 1 else 'nodes'}")
        async with pool.run_workers():
            await execution.predict_all(pool.predict, pool.concurrency)


def _stop_worker(ray: Any, worker: Any) -> None:
    # Its vLLM ends with it (child_processes.make_parent_death_preexec).
    ray.kill(worker, no_restart=True)
