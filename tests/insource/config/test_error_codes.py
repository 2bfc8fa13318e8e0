"""Error codes: every code is raised, described and documented, and survives processes and re-raising."""

import ast
import copy
import errno
import pickle
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import get_args

import pytest

from insource.config import cli
from insource.config.error_codes.codes import ErrorCode
from insource.config.error_codes.table import AREAS, PAGE, TABLE, make_page
from insource.config.errors import CodedError, GateError, RecipeError, StageError, join_errors
from insource.config.load import load
from tests.conftest import ROOT
from tests.helpers.errors import raises_error

PACKAGES = ("insource", "data_prep", "train", "serve", "compare", "deploy", "predict", "bench")
# Functions and classes whose argument `code`, or third argument, is a code.
CODE_LITERAL = re.compile(r"INS-[A-Z][0-9]{3}")


def source_files() -> list[Path]:
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    return [path for path in files if "error_codes" not in path.parts]


def message_patterns() -> dict[str, list[str]]:
    """{code: patterns of the messages that its raise sites make}; a message that is computed matches anything."""
    patterns: dict[str, list[str]] = defaultdict(list)
    for path in source_files():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                codes = [word.value for word in node.keywords if word.arg == "code"] + node.args[2:3]
                for code in codes:
                    for constant in ast.walk(code):
                        if isinstance(constant, ast.Constant) and CODE_LITERAL.fullmatch(str(constant.value)):
                            patterns[str(constant.value)].append(to_pattern(node.args[0]))
    return patterns


def to_pattern(message: ast.expr) -> str:
    if isinstance(message, ast.Constant):
        return re.escape(str(message.value))
    if isinstance(message, ast.JoinedStr):
        return "".join(to_pattern(part) if isinstance(part, ast.Constant) else ".*" for part in message.values)
    if isinstance(message, ast.BinOp):
        return to_pattern(message.left) + to_pattern(message.right)
    return ".*"


def test_every_code_has_a_description_and_every_description_a_code() -> None:
    codes = get_args(ErrorCode)
    assert sorted(TABLE) == sorted(codes) and len(set(codes)) == len(codes)
    assert sum(map(len, AREAS.values())) == len(codes), "a code is described twice"
    for entry in TABLE.values():
        assert entry.title[-1] not in ".:" and entry.cause.endswith(".") and entry.action.endswith("."), entry.code


def test_every_code_is_raised_and_every_raised_code_is_described() -> None:
    used = {code for path in source_files() for code in CODE_LITERAL.findall(path.read_text(encoding="utf-8"))}
    assert used == set(TABLE)


def test_every_example_is_a_message_that_the_source_can_print() -> None:
    patterns = message_patterns()
    wrong = [
        entry.code
        for entry in TABLE.values()
        if not any(re.match(pattern, entry.example, re.DOTALL) for pattern in patterns[entry.code])
    ]
    assert wrong == []


def test_the_page_is_up_to_date_and_has_an_anchor_of_every_code() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert text == make_page(), "run `make schema`"
    assert re.findall(r"^### (\S+)$", text, re.MULTILINE) == [*TABLE]
    completed = subprocess.run(
        [sys.executable, "-m", "insource.config.error_codes", "--check"], cwd=ROOT, capture_output=True, check=False
    )
    assert completed.returncode == 0, completed.stderr


def test_an_error_keeps_type_message_and_code_between_processes() -> None:
    for error in (
        RecipeError("rows.csv: the file is empty", code="INS-D007"),
        StageError("the disk is full", code="INS-X001"),
        GateError("not served", code="INS-E007"),
    ):
        for restored in (pickle.loads(pickle.dumps(error)), copy.copy(error)):  # noqa: S301
            assert (type(restored), str(restored), restored.code) == (type(error), str(error), error.code)
        assert (parsed := cli.parse_error(f"progress\n{cli.format_error(error)}\n")) is not None
        assert (type(parsed), str(parsed), parsed.code) == (type(error), str(error), error.code)
    assert cli.parse_error("Traceback\nValueError: error") is None


@pytest.mark.parametrize(
    ("error", "first_line", "exit_code"),
    [
        (RecipeError("INPUT is missing", code="INS-R012"), "error[INS-R012]: INPUT is missing", 2),
        (StageError("pip ended with 1", code="INS-X004"), "failed[INS-X004]: pip ended with 1", 1),
        (GateError("not served", code="INS-E007"), "check failed[INS-E007]: not served", 3),
        (OSError(errno.ENOSPC, "No space left on device"), "failed[INS-X001]: No space left on device; free some", 1),
        (PermissionError(errno.EACCES, "Permission denied", "runs"), "failed[INS-X002]: runs: Permission denied", 1),
    ],
)
def test_an_error_is_printed_with_its_code_and_without_a_traceback(
    error: Exception, first_line: str, exit_code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def stage() -> int:
        raise error

    with pytest.raises(SystemExit) as ended:
        cli.run_cli(stage)
    stderr = capsys.readouterr().err
    assert ended.value.code == exit_code and stderr.startswith(first_line)
    is_linked = isinstance(error, CodedError) and TABLE[error.code].is_linked
    assert ("see docs/errors.md#" in stderr) == is_linked


def test_each_mistake_of_a_recipe_has_its_code(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "task: {kind: classification, instruction: Route the message.}\n"
        "data: {source: {path: rows.csv}}\n"
        "model: {}\n"
        "train: {learning_rat: 1e-4, per_device_train_batch_size: 4, beta: 0.5}\n"
        "lora: {r: 600}\n",
        encoding="utf-8",
    )
    with raises_error(RecipeError, "INS-R001") as error:
        load(str(path), (), "fsdp")
    lines = str(error.value).splitlines()[1:]
    codes = {line.split(":")[1].split()[1]: line[-9:-1] for line in lines}
    assert codes.items() >= {
        "train.learning_rat": "INS-R002", "train.per_device_train_batch_size": "INS-R005", "lora.r": "INS-R004",
    }.items()  # fmt: skip


def test_an_error_of_a_base_keeps_its_code_below_the_location_in_the_recipe(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "task: {kind: classification, instruction: Route the message.}\ndata: {source: {path: rows.csv}}\n"
        "model: {base: ./no-such-folder}\n",
        encoding="utf-8",
    )
    with raises_error(RecipeError, "INS-T001", match=r"mine\.yaml:3: model\.base: .*no-such-folder"):
        load(str(path), (), "gpu")


def test_several_errors_have_a_line_and_a_code_each() -> None:
    price, key = RecipeError("no price", code="INS-A002"), RecipeError("no key", code="INS-A007")
    joined = join_errors([price, key])
    assert str(joined) == "no price [INS-A002]\nno key [INS-A007]" and joined.code == "INS-A002"
    assert join_errors([price]) is price
