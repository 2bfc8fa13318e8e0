"""How much of the code outside tests is typed: mypy is strict, and `Any` switches it off."""

import re
import tomllib

from tests.conftest import ROOT

MAX_ANY_PER_THOUSAND_LINES = 12


def test_few_annotations_are_any() -> None:
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["mypy"]["files"]
    paths = [path for package in packages for path in (ROOT / package).rglob("*.py")]
    lines = [line for path in paths for line in path.read_text(encoding="utf-8").splitlines()]
    typed = [line for line in lines if not line.lstrip().startswith("from typing import")]
    n_any = sum(len(re.findall(r"\bAny\b", line)) for line in typed)
    assert 1000 * n_any / len(lines) < MAX_ANY_PER_THOUSAND_LINES
