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
from tests.helpers.gateway.stand_in_engine import StandInEngine, answer_by_hash, run_stand_in
from tests.helpers.prediction_run import PredictionRun, make_run, read_output, write_csv
from train.export import adapter
from train.model import base

SEGMENT = 40
TEXTS = [f"parcel {at} of {at * 7919 % 1000}" for at in range(230)]


@pytest.fixture
def place(tmp_path: Path) -> PredictionRun:
    return make_run(tmp_path)


@pytest.fixture
def engine() -> StandInEngine:
    return StandInEngine(answer_by_hash)


@pytest.fixture
def address(engine: StandInEngine) -> Iterator[str]:
    with run_stand_in(engine) as address:
        yield address


@pytest.fixture
def rows(place: PredictionRun) -> Path:
    return write_csv(place.folder / "in.csv", [{"number": at, "message": text} for at, text in enumerate(TEXTS)])


def whole(place: PredictionRun, rows: Path, address: str, output: str) -> bytes:
    """What a prediction writes that nobody kills."""
    process = place.process(SEGMENT, "", place.words(rows, f"whole-{output}", address))
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return place.output(f"whole-{output}").read_bytes()


def killed_when_held(place: PredictionRun, engine: StandInEngine, words: list[str], answers: int) -> None:
    """Kills a prediction once the engine has given so many answers, and all of them are on disk."""
    engine.hold_after = engine.passed + answers
    process = place.process(SEGMENT, "", words)
    end = time.monotonic() + 300
    while place.rows_on_disk() < answers:
        assert process.poll() is None and time.monotonic() < end, "it did not come so far"
        time.sleep(0.02)
    process.kill()
    process.communicate()
    engine.hold_after = None


@pytest.mark.parametrize("output", ["out.csv", "out.parquet"])
@pytest.mark.parametrize("answers", [7, 100, 229])
def test_killed_while_it_asks_it_goes_on_without_asking_again(
    place: PredictionRun, engine: StandInEngine, address: str, rows: Path, answers: int, output: str
) -> None:
    words = place.words(rows, output, address)
    killed_when_held(place, engine, words, answers)
    assert not place.output(output).exists(), "nothing half-written"
    process = place.process(SEGMENT, "", words)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert engine.answered == dict.fromkeys(TEXTS, 1)
    if done := answers // SEGMENT:
        (resumed,) = re.findall(r"resumed   (\d+) of 230 rows", said) or ["0"]
        assert int(resumed) <= done * SEGMENT and int(resumed) % SEGMENT == 0
    assert place.output(output).read_bytes() == whole(place, rows, address, output)


@pytest.mark.parametrize(
    "where",
    [
        "predict.rows.output.write_part",
        "predict.rows.output.write_part+",
        "predict.rows.output._flush",
        "predict.rows.output.join_parts",
    ],
)
def test_killed_while_it_writes_it_goes_on_and_asks_for_nothing(
    place: PredictionRun, engine: StandInEngine, address: str, rows: Path, where: str
) -> None:
    words = place.words(rows, "out.csv", address)
    process = place.process(SEGMENT, where, words)
    process.communicate(timeout=300)
    assert process.returncode == -9
    on_disk, before = place.rows_on_disk(), engine.answered.total()
    again = place.process(SEGMENT, "", words)
    said, _ = again.communicate(timeout=300)
    assert again.returncode == 0, said
    # What had arrived, and was not on disk yet, is asked again, and nothing else.
    assert engine.answered.total() - before == len(TEXTS) - on_disk
    assert place.output("out.csv").read_bytes() == whole(place, rows, address, "out.csv")
    assert [row["message"] for row in read_output(place.output("out.csv"))] == TEXTS


def test_two_at_once_are_refused(place: PredictionRun, engine: StandInEngine, address: str, rows: Path) -> None:
    engine.hold_after = 10
    first = place.process(SEGMENT, "", place.words(rows, "out.csv", address))
    while place.rows_on_disk() < 10:
        assert first.poll() is None
        time.sleep(0.02)
    second = place.process(SEGMENT, "", place.words(rows, "out.csv", address))
    said, _ = second.communicate(timeout=300)
    first.kill()
    first.communicate()
    assert second.returncode == 1 and "another process predicts these rows" in said


def test_a_mistake_in_the_call_ends_with_2_and_in_words(place: PredictionRun, address: str) -> None:
    process = place.process(SEGMENT, "", place.words("no-such.csv", "out.csv", address))
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 2 and "error: INPUT: there is no file no-such.csv" in said
    assert "Traceback" not in said


def test_the_variables_of_make_say_the_same(place: PredictionRun, address: str, rows: Path) -> None:
    told = {"INPUT": str(rows), "OUTPUT": str(place.output("out.csv")), "ENGINE": "vllm", "BASE_URL": address}
    told |= {"RUNS": str(place.folder / "runs"), "HARDWARE": "cpu", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "predict", str(place.recipe)]
    subprocess.run(command, cwd=ROOT, env={**os.environ, **told}, check=True, capture_output=True)
    assert len(read_output(place.output("out.csv"))) == len(TEXTS)
    rule = ["make", "-n", "predict", f"INPUT={rows}", "OUTPUT=out.csv", f"RECIPE={place.recipe}"]
    shown = subprocess.run(rule, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert f"-m predict {place.recipe}" in shown


def test_an_output_by_the_form_that_was_fallen_back_to_is_there_without_a_start(
    place: PredictionRun, rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The merged model comes first, and can be planned; whether vLLM starts with it is not tried."""
    servable_forms(place)
    words = [str(place.recipe), "--input", str(rows), "--output", str(place.output("out.jsonl"))]
    words += ["--hardware", "cpu", "--runs", str(place.folder / "runs")]
    told = {"recipe": str(place.recipe), "set": [], "hardware": "cpu", "runs": str(place.folder / "runs"), "run": None}
    told |= {"input": str(rows), "output": str(place.output("out.jsonl")), "engine": None, "base_url": None}
    job = stage.build_job(Namespace(**told, probabilities=False, fresh=False, force=False))
    forms = launch_plan.rank_variants(job.here, job.here.recipe(), job.recipe.serve)
    assert forms == ["merged", "adapter"]
    first, second = (stage.plan_execution(job, job.served(form)) for form in forms)
    assert first.digest != second.digest
    place.output("").mkdir()
    path = place.output("out.jsonl")
    path.write_text('{"answer": "late"}\n', encoding="utf-8")
    about = {"digest": second.digest, "output_sha256": atomic_files.sha256(path)}
    atomic_files.write_json(path.with_name("out.jsonl.about.json"), about)
    assert __main__.main(words) == 0
    said = capsys.readouterr().err
    assert "unchanged" in said and "starting" not in said


def servable_forms(place: PredictionRun) -> None:
    """Gives a run an untrained adapter on the pocket model, and that model in the place of a merged one."""
    recipe, folder = place.here.recipe(), place.here.folder / "adapter"
    rendering, told = chat_template.load_rendering(recipe.model), atomic_files.read_json(folder / "prompt.json")
    _, spec = load_task_spec(told["task"])
    config = LoraConfig(r=4, target_modules="all-linear", task_type=TaskType.CAUSAL_LM)
    get_peft_model(base.load_base_model(recipe), config).save_pretrained(folder, save_embedding_layers=False)
    rendering.tokenizer.save_pretrained(folder)
    adapter.build_generation_config(rendering.tokenizer).save_pretrained(folder)
    atomic_files.write_json(
        folder / "prompt.json", {**adapter.build_prompt_spec(recipe, rendering, spec, 64), "task": told["task"]}
    )
    (folder / atomic_files.CHECKSUMS).unlink()
    atomic_files.write_checksums(folder)
    merged = shutil.copytree(POCKET, place.here.folder / "merged")
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
    command = ["make", "--no-print-directory", "-o", "setup", "predict", f"VENV={python}"]
    environment = {**os.environ, "BASE_URL": "https://api.example.org/v1"}

    def told(*words: str) -> str:
        made = subprocess.run([*command, *words], cwd=ROOT, env=environment, check=True, capture_output=True, text=True)
        return made.stdout.strip()

    assert told() == "BASE_URL="
    assert told("BASE_URL=http://127.0.0.1:8000") == "BASE_URL=http://127.0.0.1:8000"


def test_a_torn_last_line_is_cut_off_and_a_broken_one_before_it_is_named(tmp_path: Path) -> None:
    path = tmp_path / "000000.jsonl"
    journal = Journal(path)
    journal.append([("a", Prediction("late", 0.9, "local")), ("b", Prediction(refused="invalid_answer: empty"))])
    journal.close()
    written = path.read_bytes()
    for torn in range(1, len(written.splitlines()[1]) + 1):
        path.write_bytes(written[:-torn])
        journal = Journal(path)
        assert journal.predictions == {"a": Prediction("late", 0.9, "local")}
        journal.close()
        assert path.read_bytes() == written.splitlines(keepends=True)[0]
    path.write_bytes(b"no answer\n" + written)
    with pytest.raises(StageError, match=r"000000.jsonl:1: this line is no answer"):
        Journal(path)


FULL = """
import resource, signal, sys
from pathlib import Path
from peft import LoraConfig, TaskType, get_peft_model

from predict import __main__, stage
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


@pytest.mark.slow(minutes=8)
def test_memory_does_not_grow_with_the_rows(place: PredictionRun) -> None:
    port = free_port()
    engine = subprocess.Popen([sys.executable, "-m", "tests.helpers.gateway.stand_in_engine", str(port)], cwd=ROOT)
    try:
        end = time.monotonic() + 120
        while not is_healthy(Address("127.0.0.1", port)):
            assert engine.poll() is None and time.monotonic() < end
            time.sleep(0.1)
        peaks = {n: peak_bytes(place, f"http://127.0.0.1:{port}", n) for n in (20_000, 200_000)}
    finally:
        engine.terminate()
        engine.wait()
    assert peaks[200_000] - peaks[20_000] < 48 * 2**20, peaks
    found = read_output(place.output("200000.jsonl"))
    assert len(found) == 200_000
    assert all(row["number"] == str(at) for at, row in enumerate(found))
    assert all(row["answer"] == answer_by_hash(row["message"])[0] for row in found[::997])


PEAK = """
import re, sys
from pathlib import Path
from predict import __main__

assert __main__.main(sys.argv[1:]) == 0
print(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""


def peak_bytes(place: PredictionRun, address: str, n: int) -> int:
    """The most memory that a prediction of so many rows takes, with text of 100 MB in all for 200,000 of them."""
    filling = "the parcel has not come and nobody can say where it is " * 8 + "now"
    path = place.folder / f"{n}.csv"
    with path.open("w", encoding="utf-8") as file:
        file.write("number,message\n")
        file.writelines(f'{at},"{at} {filling}"\n' for at in range(n))
    words = place.words(path, f"{n}.jsonl", address)
    # Not by os.wait4: its figure has what this process held when it started the other one.
    told = subprocess.run(
        [sys.executable, "-c", PEAK, *words],
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return int(told.stdout.split()[-1]) * 1024
