"""A prediction with a stand-in of the engine, in a process that bench.prediction measures and kills.

    python -m bench.prediction_child FOLDER ROWS CALLS

FOLDER is that of `write_run`. CALLS is a file with one byte for each row: the number of its calls of the stand-in. It
is mapped into memory, so a kill -9 loses no count. The last line is the peak of the process's memory in bytes.
"""

import argparse
import asyncio
import json
import mmap
import re
import sys
from collections.abc import Mapping
from pathlib import Path

from predict import stage
from predict.execution.job_execution import JobExecution
from predict.prediction import ANSWERED_LOCALLY, Prediction
from predict.rows.inputs import InputRow
from tests.helpers.prediction_run import make_run

REFERENCE_MARK = ", reference "
ANSWERS = "answers.json"


def write_run(folder: Path, predictions: Mapping[str, tuple[str, float]]) -> None:
    """Write a run without weights, and the stand-in's predictions: {text: (label, probability)}."""
    make_run(folder)
    (folder / ANSWERS).write_text(json.dumps(predictions), encoding="utf-8")


def write_rows(folder: Path, rows: int) -> Path:
    """Write a CSV file of different rows, and return its path."""
    texts = [*json.loads((folder / ANSWERS).read_text(encoding="utf-8"))]
    path = folder / f"{rows}.csv"
    with path.open("w", encoding="utf-8") as file:
        file.write("number,message\n")
        file.writelines(f'{number},"{texts[number % len(texts)]}{REFERENCE_MARK}{number}"\n' for number in range(rows))
    return path


def predict(folder: Path, rows: int, calls_path: Path) -> None:
    """Predict the rows of `write_rows` with the stand-in."""
    answers = json.loads((folder / ANSWERS).read_text(encoding="utf-8"))
    with calls_path.open("r+b") as file:
        calls = mmap.mmap(file.fileno(), rows)

        async def answer(row: InputRow) -> Prediction:
            assert row.task_input is not None
            text, _, number = row.task_input.text.partition(REFERENCE_MARK)
            calls[int(number)] += 1
            await asyncio.sleep(0)
            label, probability = answers[text]
            return Prediction(label, probability, ANSWERED_LOCALLY)

        job = stage.build_job(_arguments(folder, rows))
        execution = JobExecution(job, job.task("adapter"), ["stand-in"], "a linear stand-in of the engine")
        with execution.lock():
            execution.log_start()
            asyncio.run(execution.predict_all(answer, job.recipe.compare.concurrency))
            execution.finish()


def _arguments(folder: Path, rows: int) -> argparse.Namespace:
    return argparse.Namespace(
        recipe=str(folder / "router.yaml"),
        set=[],
        hardware="cpu",
        runs=str(folder / "runs"),
        run=None,
        input=str(folder / f"{rows}.csv"),
        output=str(output_path(folder, rows)),
        engine="vllm",
        base_url=None,
        workers=None,
        probabilities=False,
        fresh=False,
        force=True,
    )


def output_path(folder: Path, rows: int) -> Path:
    """Return the path of the output of `predict`."""
    return folder / "out" / f"{rows}.jsonl"


def main() -> int:
    folder, rows, calls_path = Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    predict(folder, rows, calls_path)
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    assert peak is not None
    print(int(peak[1]) * 1024)
    return 0


if __name__ == "__main__":
    sys.exit(main())
