"""What tests share: the pocket model, a small recipe on disk, and the commands as a user types them."""

import csv
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from demo_data.support_tickets import generate_tickets
from tests.helpers import hung_tests, property_tests
from tests.helpers.provider.faulty_provider import Provider, run_provider

ROOT = Path(__file__).parent.parent
# From `DURATIONS=tests/seconds_by_file.json make check`.
SECONDS_BY_FILE = ROOT / "tests" / "seconds_by_file.json"
REAL_DATA = ROOT.parent / "shared" / "data"

# A shell that starts the tests in the background, or by nohup, has these ignored, and children inherit that; tests send
# them.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# On a build machine the same examples every time; elsewhere new ones every time. How long one takes is no finding: the
# machine may be busy.
DEFAULT_EXAMPLES = property_tests.count_examples(100)
settings.register_profile("default", deadline=None, max_examples=DEFAULT_EXAMPLES)
settings.register_profile("ci", deadline=None, max_examples=DEFAULT_EXAMPLES, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files that took longest first: on several cores the last file to end decides how long all take.

    A file without recorded seconds comes by the minutes of its slow tests.
    """
    recorded = json.loads(SECONDS_BY_FILE.read_text(encoding="utf-8"))
    seconds = Counter[Path]()
    for item in items:
        if mark := item.get_closest_marker("slow"):
            seconds[item.path] += 60 * mark.kwargs.get("minutes", 1)
    for path in {item.path for item in items}:
        seconds[path] = recorded.get(path.relative_to(ROOT).as_posix(), seconds[path])
    items.sort(key=lambda item: -seconds[item.path])


STDERR_FD = pytest.StashKey[int]()


def pytest_configure(config: pytest.Config) -> None:
    # While tests run, pytest captures what is written to 2.
    config.stash[STDERR_FD] = os.dup(2)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    with hung_tests.report_if_hung(item.nodeid, item.config.stash[STDERR_FD]):
        return (yield)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the files that took longest. With DURATIONS=<file> write the seconds of all files there, as JSON."""
    seconds = defaultdict[str, float](float)
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                seconds[report.nodeid.partition("::")[0]] += report.duration
    if len(seconds) > 1:
        terminalreporter.section(f"seconds by file ({sum(seconds.values()):.0f} of all workers)")
        for name, value in sorted(seconds.items(), key=lambda entry: -entry[1])[:30]:
            terminalreporter.line(f"{value:7.1f}  {name}")
    if path := os.environ.get("DURATIONS"):
        rounded = {name: round(value) for name, value in sorted(seconds.items()) if value >= 1}
        Path(path).write_text(json.dumps(rounded, indent=1) + "\n", encoding="utf-8")


Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(ROOT / "pocket" / "model")


@pytest.fixture(scope="session")
def banking77() -> Path:
    if not (REAL_DATA / "banking77" / "train.csv").exists():
        pytest.skip("Banking77 is not on this machine (../shared/data/banking77)")
    return REAL_DATA / "banking77"


@pytest.fixture(scope="session")
def sroie() -> Path:
    if not (REAL_DATA / "sroie" / "train.jsonl").exists():
        pytest.skip("SROIE is not on this machine (../shared/data/sroie)")
    return REAL_DATA / "sroie"


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """Returns a folder that one of the processes that run tests side by side makes, for all of them."""
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (marker := folder.with_suffix(".made")).exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            marker.touch()
    return folder


@pytest.fixture(scope="session")
def small_recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe on 400 synthetic tickets: small enough to train in seconds.

    Without W&B: starting it took a quarter of a training of two updates.
    """
    return made_once(tmp_path_factory, "small", _write_small_recipe) / "small.yaml"


def _write_small_recipe(folder: Path) -> None:
    with (folder / "tickets.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["message", "queue", "customer"])
        writer.writerows((ticket.message, ticket.queue, ticket.customer_id) for ticket in generate_tickets(400, seed=5))
    (folder / "small.yaml").write_text(
        """\
task: {kind: classification, instruction: Route the message to one queue.}
data:
  source: {path: tickets.csv}
  columns: {text: message, label: queue}
  split: {test: 0.2, validation: 0.15, calibration: 0.1, group: customer}
model: {base: pocket}
train: {max_steps: 6, logging_steps: 2, save_steps: 2}
tracking: {wandb: {mode: "off"}}
""",
        encoding="utf-8",
    )


@pytest.fixture
def python(tmp_path: Path) -> Iterator[Command]:
    """Runs `python -m <words>` in the project, with runs in a folder of this test, and returns how it ended."""

    def run(*args: object, **environment: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", *map(str, args)]
        settings = {**os.environ, "RUNS": str(tmp_path / "runs"), "HF_HUB_OFFLINE": "1", **environment}
        return subprocess.run(argv, cwd=ROOT, env=settings, capture_output=True, text=True, timeout=900, check=False)

    yield run


@pytest.fixture
def provider() -> Provider:
    """A provider on loopback that refuses what the real ones refuse."""
    return Provider()


@pytest.fixture
def address(provider: Provider) -> Iterator[str]:
    """Where that provider listens."""
    with run_provider(provider) as address:
        yield address
