"""Bulk prediction that is killed goes on: the same file to the byte, and no answer that is on disk is asked for again.

And its memory does not grow with the rows.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import pytest
from peft import LoraConfig, TaskType, get_peft_model

from insource.config.base_models import POCKET
from insource.config.errors import StageError
from insource.system import atomic_files
from insource.tasks import load_task_spec
from insource.tasks.rendering import chat_template
from predict import __main__, stage
from predict.execution.journal import Journal
from predict.prediction import Prediction
from serve.vllm import launch_plan
from serve.vllm.server_process import Address, free_port, is_healthy
from tests.conftest import ROOT
from tests.helpers.errors import raises_error
from tests.helpers.gateway.stand_in_engine import StandInEngine, answer_by_hash, serve_engine
from tests.helpers.prediction_run import PredictionRun, make_run, read_output, write_csv
from train.export import adapter
from train.model import base

SEGMENT = 40
TEXTS = [f"parcel {index} of {index * 7919 % 1000}" for index in range(230)]


@pytest.fixture
def prediction_run(tmp_path: Path) -> PredictionRun:
    return make_run(tmp_path)


@pytest.fixture
def engine() -> StandInEngine:
    return StandInEngine(answer_by_hash)


@pytest.fixture
def address(engine: StandInEngine) -> Iterator[str]:
    with serve_engine(engine) as address:
        yield address


@pytest.fixture
def rows(prediction_run: PredictionRun) -> Path:
    return write_rows(prediction_run.folder)


def write_rows(folder: Path) -> Path:
    return write_csv(folder / "in.csv", [{"number": index, "message": text} for index, text in enumerate(TEXTS)])


@pytest.fixture(scope="module")
def undisturbed_outputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The output of a prediction that nobody kills, by name."""
    undisturbed = make_run(tmp_path_factory.mktemp("undisturbed"))
    rows, outputs = write_rows(undisturbed.folder), {}
    with serve_engine(StandInEngine(answer_by_hash)) as address:
        for output in ("out.csv", "out.parquet"):
            process = undisturbed.start(SEGMENT, "", undisturbed.argv(rows, output, address))
            log_text, _ = process.communicate(timeout=300)
            assert process.returncode == 0, log_text
            outputs[output] = undisturbed.output_path(output).read_bytes()
    return outputs


def killed_when_held(prediction_run: PredictionRun, engine: StandInEngine, args: list[str], n_answers: int) -> None:
    """Kills a prediction once the engine has given so many answers, and all of them are on disk."""
    engine.hang_after = engine.n_accepted + n_answers
    process = prediction_run.start(SEGMENT, "", args)
    deadline = time.monotonic() + 300
    while prediction_run.rows_on_disk() < n_answers:
        assert process.poll() is None and time.monotonic() < deadline, "it did not come so far"
        time.sleep(0.02)
    process.kill()
    process.communicate()
    engine.hang_after = None


@pytest.mark.parametrize(
    ("n_answers", "output"),
    [
        *((n_answers, "out.csv") for n_answers in (7, 100, 229)),
        (100, "out.parquet"),
        *(pytest.param(n_answers, "out.parquet", marks=pytest.mark.nightly) for n_answers in (7, 229)),
    ],
)
def test_killed_while_it_asks_it_goes_on_without_asking_again(
    prediction_run: PredictionRun,
    engine: StandInEngine,
    address: str,
    rows: Path,
    undisturbed_outputs: dict[str, bytes],
    n_answers: int,
    output: str,
) -> None:
    args = prediction_run.argv(rows, output, address)
    killed_when_held(prediction_run, engine, args, n_answers)
    assert not prediction_run.output_path(output).exists(), "nothing half-written"
    process = prediction_run.start(SEGMENT, "", args)
    log_text, _ = process.communicate(timeout=300)
    assert process.returncode == 0, log_text
    assert engine.answer_counts == dict.fromkeys(TEXTS, 1)
    if full_segments := n_answers // SEGMENT:
        (resumed,) = re.findall(r"resumed   (\d+) of 230 rows", log_text) or ["0"]
        assert int(resumed) <= full_segments * SEGMENT and int(resumed) % SEGMENT == 0
    assert prediction_run.output_path(output).read_bytes() == undisturbed_outputs[output]


@pytest.mark.parametrize(
    "kill_point",
    [
        "predict.rows.output.write_part",
        "predict.rows.output.write_part+",
        "predict.rows.output._flush",
        "predict.rows.output.join_parts",
    ],
)
def test_killed_while_it_writes_it_goes_on_and_asks_for_nothing(
    prediction_run: PredictionRun,
    engine: StandInEngine,
    address: str,
    rows: Path,
    undisturbed_outputs: dict[str, bytes],
    kill_point: str,
) -> None:
    args = prediction_run.argv(rows, "out.csv", address)
    process = prediction_run.start(SEGMENT, kill_point, args)
    process.communicate(timeout=300)
    assert process.returncode == -9
    n_on_disk, n_answered = prediction_run.rows_on_disk(), engine.answer_counts.total()
    resumed = prediction_run.start(SEGMENT, "", args)
    log_text, _ = resumed.communicate(timeout=300)
    assert resumed.returncode == 0, log_text
    # What had arrived, and was not on disk yet, is asked again, and nothing else.
    assert engine.answer_counts.total() - n_answered == len(TEXTS) - n_on_disk
    assert prediction_run.output_path("out.csv").read_bytes() == undisturbed_outputs["out.csv"]
    assert [row["message"] for row in read_output(prediction_run.output_path("out.csv"))] == TEXTS


def test_two_at_once_are_refused(
    prediction_run: PredictionRun, engine: StandInEngine, address: str, rows: Path
) -> None:
    engine.hang_after = 10
    first = prediction_run.start(SEGMENT, "", prediction_run.argv(rows, "out.csv", address))
    while prediction_run.rows_on_disk() < 10:
        assert first.poll() is None
        time.sleep(0.02)
    second = prediction_run.start(SEGMENT, "", prediction_run.argv(rows, "out.csv", address))
    log_text, _ = second.communicate(timeout=300)
    first.kill()
    first.communicate()
    assert second.returncode == 1 and "another process predicts these rows" in log_text


def test_a_mistake_in_the_call_ends_with_2_and_in_words(prediction_run: PredictionRun, address: str) -> None:
    process = prediction_run.start(SEGMENT, "", prediction_run.argv("no-such.csv", "out.csv", address))
    log_text, _ = process.communicate(timeout=300)
    assert process.returncode == 2 and "error[INS-D001]: INPUT: there is no file no-such.csv" in log_text
    assert "Traceback" not in log_text


def test_the_variables_of_make_say_the_same(prediction_run: PredictionRun, address: str, rows: Path) -> None:
    environment = {
        "INPUT": str(rows),
        "OUTPUT": str(prediction_run.output_path("out.csv")),
        "ENGINE": "vllm",
        "BASE_URL": address,
    }
    environment |= {"RUNS": str(prediction_run.folder / "runs"), "HARDWARE": "cpu", "HF_HUB_OFFLINE": "1"}
    argv = [sys.executable, "-m", "predict", str(prediction_run.recipe_path)]
    subprocess.run(argv, cwd=ROOT, env={**os.environ, **environment}, check=True, capture_output=True)
    assert len(read_output(prediction_run.output_path("out.csv"))) == len(TEXTS)
    make_argv = ["make", "-n", "predict", f"INPUT={rows}", "OUTPUT=out.csv", f"RECIPE={prediction_run.recipe_path}"]
    make_output = subprocess.run(make_argv, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert f"-m predict {prediction_run.recipe_path}" in make_output


def test_an_output_by_the_form_that_was_fallen_back_to_is_there_without_a_start(
    prediction_run: PredictionRun, rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The merged model comes first, and can be planned; whether vLLM starts with it is not tried."""
    servable_forms(prediction_run)
    argv = [
        str(prediction_run.recipe_path),
        "--input",
        str(rows),
        "--output",
        str(prediction_run.output_path("out.jsonl")),
    ]
    argv += ["--hardware", "cpu", "--runs", str(prediction_run.folder / "runs")]
    arguments = {
        "recipe": str(prediction_run.recipe_path),
        "set": [],
        "hardware": "cpu",
        "runs": str(prediction_run.folder / "runs"),
        "run": None,
    }
    arguments |= {
        "input": str(rows),
        "output": str(prediction_run.output_path("out.jsonl")),
        "engine": None,
        "base_url": None,
        "workers": None,
    }
    job = stage.build_job(Namespace(**arguments, probabilities=False, fresh=False, force=False))
    forms = launch_plan.rank_variants(job.run, job.run.recipe(), job.recipe.serve)
    assert forms == ["merged", "adapter"]
    first, second = (stage.plan_execution(job, job.served_model(form)) for form in forms)
    assert first.digest != second.digest
    prediction_run.output_path("").mkdir()
    path = prediction_run.output_path("out.jsonl")
    path.write_text('{"answer": "late"}\n', encoding="utf-8")
    metadata = {"digest": second.digest, "output_sha256": atomic_files.sha256(path)}
    atomic_files.write_json(path.with_name("out.jsonl.about.json"), metadata)
    assert __main__.main(argv) == 0
    stderr = capsys.readouterr().err
    assert "unchanged" in stderr and "starting" not in stderr


def servable_forms(prediction_run: PredictionRun) -> None:
    """Gives a run an untrained adapter on the pocket model, and that model in the place of a merged one."""
    recipe, folder = prediction_run.run.recipe(), prediction_run.run.folder / "adapter"
    rendering, prompt = chat_template.load_rendering(recipe.model), atomic_files.read_json(folder / "prompt.json")
    _, spec = load_task_spec(prompt["task"])
    config = LoraConfig(r=4, target_modules="all-linear", task_type=TaskType.CAUSAL_LM)
    get_peft_model(base.load_base_model(recipe), config).save_pretrained(folder, save_embedding_layers=False)
    rendering.tokenizer.save_pretrained(folder)
    adapter.build_generation_config(rendering.tokenizer).save_pretrained(folder)
    atomic_files.write_json(
        folder / "prompt.json",
        adapter.build_prompt_spec(recipe, rendering, spec, 64).to_json() | {"task": prompt["task"]},
    )
    (folder / atomic_files.CHECKSUMS).unlink()
    atomic_files.write_checksums(folder)
    merged = shutil.copytree(POCKET, prediction_run.run.folder / "merged")
    for name in ("prompt.json", "chat_template.jinja", "generation_config.json"):
        shutil.copy(folder / name, merged / name)
    atomic_files.write_json(
        merged / "export.json", {"adapter": atomic_files.sha256(folder / atomic_files.CHECKSUMS), "base": "published"}
    )
    (merged / atomic_files.CHECKSUMS).unlink(missing_ok=True)
    atomic_files.write_checksums(merged)


def test_the_base_url_of_the_shell_is_no_gateway(tmp_path: Path) -> None:
    """Other programs have a BASE_URL in their environment, and rows must go to none of them."""
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "BASE_URL=$BASE_URL"\n', encoding="utf-8")
    python.chmod(0o755)
    argv = ["make", "--no-print-directory", "-o", "setup", "predict", f"VENV={python}"]
    environment = {**os.environ, "BASE_URL": "https://api.example.org/v1"}

    def base_url_line(*args: str) -> str:
        completed = subprocess.run(
            [*argv, *args], cwd=ROOT, env=environment, check=True, capture_output=True, text=True
        )
        return completed.stdout.strip()

    assert base_url_line() == "BASE_URL="
    assert base_url_line("BASE_URL=http://127.0.0.1:8000") == "BASE_URL=http://127.0.0.1:8000"


def test_a_torn_last_line_is_cut_off_and_a_broken_one_before_it_is_named(tmp_path: Path) -> None:
    path = tmp_path / "000000.jsonl"
    journal = Journal(path)
    journal.append([("a", Prediction("late", 0.9, "local")), ("b", Prediction(refused="invalid_answer: empty"))])
    journal.close()
    content = path.read_bytes()
    for n_cut in range(1, len(content.splitlines()[1]) + 1):
        path.write_bytes(content[:-n_cut])
        journal = Journal(path)
        assert journal.predictions == {"a": Prediction("late", 0.9, "local")}
        journal.close()
        assert path.read_bytes() == content.splitlines(keepends=True)[0]
    path.write_bytes(b"no answer\n" + content)
    with raises_error(StageError, "INS-A010", match=r"000000.jsonl:1: this line is not a recorded answer"):
        Journal(path)


FULL = """
import resource, signal, sys
from pathlib import Path
from predict.execution.journal import Journal
from predict.prediction import Prediction
from insource.config.errors import StageError

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
journal = Journal(Path(sys.argv[1]))
journal.append([("a", Prediction("late", 0.9, "local"))])
resource.setrlimit(resource.RLIMIT_FSIZE, (journal.path.stat().st_size + 20, resource.RLIM_INFINITY))
told = []
for key in "bc":
    if key == "c":
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    try:
        journal.append([(key, Prediction("lost", 0.9, "local"))])
    except StageError as error:
        told.append(str(error))
journal.close()
assert len(told) == 2, told
"""


def test_a_disk_that_is_full_leaves_a_journal_that_can_be_read(tmp_path: Path) -> None:
    """The disk has room for 20 bytes more, and all of it again in the next moment."""
    path = tmp_path / "000000.jsonl"
    subprocess.run([sys.executable, "-c", FULL, str(path)], cwd=ROOT, check=True)
    journal = Journal(path)
    journal.close()
    assert journal.predictions == {"a": Prediction("late", 0.9, "local")}
    assert path.read_bytes().endswith(b"\n")


@pytest.mark.parametrize(
    ("few", "many"),
    [
        pytest.param(20_000, 60_000, marks=pytest.mark.slow(minutes=2)),
        pytest.param(20_000, 200_000, marks=pytest.mark.nightly),
    ],
)
def test_memory_does_not_grow_with_the_rows(prediction_run: PredictionRun, few: int, many: int) -> None:
    port = free_port()
    engine = subprocess.Popen([sys.executable, "-m", "tests.helpers.gateway.stand_in_engine", str(port)], cwd=ROOT)
    try:
        deadline = time.monotonic() + 120
        while not is_healthy(Address("127.0.0.1", port)):
            assert engine.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        peaks = {n: peak_bytes(prediction_run, f"http://127.0.0.1:{port}", n) for n in (few, many)}
    finally:
        engine.terminate()
        engine.wait()
    assert peaks[many] - peaks[few] < 48 * 2**20, peaks
    output_rows = read_output(prediction_run.output_path(f"{many}.jsonl"))
    assert len(output_rows) == many
    assert all(row["number"] == str(index) for index, row in enumerate(output_rows))
    assert all(row["answer"] == answer_by_hash(row["message"])[0] for row in output_rows[::997])


PEAK = """
import re, sys
from pathlib import Path
from predict import __main__

assert __main__.main(sys.argv[1:]) == 0
print(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""


def peak_bytes(prediction_run: PredictionRun, address: str, n: int) -> int:
    """The most memory that a prediction of so many rows takes, with text of 100 MB in all for 200,000 of them."""
    filler = "the parcel has not come and nobody can say where it is " * 8 + "now"
    path = prediction_run.folder / f"{n}.csv"
    with path.open("w", encoding="utf-8") as file:
        file.write("number,message\n")
        file.writelines(f'{index},"{index} {filler}"\n' for index in range(n))
    args = prediction_run.argv(path, f"{n}.jsonl", address)
    # Not by os.wait4: its figure has what this process held when it started the other one.
    completed = subprocess.run(
        [sys.executable, "-c", PEAK, *args],
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return int(completed.stdout.split()[-1]) * 1024
