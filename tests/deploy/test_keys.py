"""Keys of the gateway: from the environment, from a file that changes, and what is wrong with a file."""

from pathlib import Path

import pytest

from deploy.gateway import keys
from deploy.gateway.keys import Keys
from insource.config.errors import RecipeError
from serve.vllm.server_process import Address
from tests.helpers.errors import raises_error

LOOPBACK, ANYWHERE = Address("127.0.0.1", 8000), Address("0.0.0.0", 8000)  # noqa: S104


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (keys.API_KEY_VARIABLE, keys.KEYS_FILE):
        monkeypatch.delenv(name, raising=False)


def test_a_file_of_keys(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# who asks\nteam-a  0123456789abcdef # old\n\nteam-b fedcba#9876543210\n", encoding="utf-8")
    loaded_keys = Keys("the key of the environment", file)
    assert loaded_keys.identify_client({"Authorization": "Bearer 0123456789abcdef"}) == "team-a"
    assert loaded_keys.identify_client({"x-api-key": "fedcba#9876543210"}) == "team-b"
    assert loaded_keys.identify_client({"Authorization": "bearer the key of the environment"}) == "default"
    assert (
        loaded_keys.identify_client({"Authorization": "Bearer 0123456789abcde"}) is None
        and loaded_keys.identify_client({}) is None
    )
    assert loaded_keys.refresh() is None
    file.write_text("team-b another-key-of-team-b\n", encoding="utf-8")
    assert loaded_keys.refresh() == "read again: team-b"
    assert loaded_keys.identify_client({"x-api-key": "0123456789abcdef"}) is None
    assert loaded_keys.identify_client({"x-api-key": "another-key-of-team-b"}) == "team-b"
    file.unlink()
    assert "stay valid" in str(loaded_keys.refresh()) and loaded_keys.refresh() is None
    assert loaded_keys.identify_client({"x-api-key": "another-key-of-team-b"}) == "team-b"
    file.write_text("team-c 0123456789abcdef\n", encoding="utf-8")
    assert loaded_keys.refresh() == "read again: team-c"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no key"),
        ("# nobody\n", "has no key"),
        ("team-a\n", ":1: a line is a name and a key"),
        ("a 0123456789abcdef\n\nb 0123 456789abcdef\n", ":3: a line is a name and a key"),
        ("a 0123456789\n", ":1: a key has at least 16 characters"),
        ("a 0123456789abcdef\na fedcba9876543210\n", ":2: the name a is taken"),
        ("default 0123456789abcdef\n", ":1: the name default is taken"),
    ],
)
def test_what_is_wrong_with_a_file_is_told_by_its_line_and_without_a_key(
    text: str, message: str, tmp_path: Path
) -> None:
    file = tmp_path / "keys"
    file.write_text(text, encoding="utf-8")
    with raises_error(RecipeError, "INS-G007", match=message) as error:
        Keys(None, file)
    assert "0123456789" not in str(error.value)


def test_a_file_that_everybody_may_write_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("a 0123456789abcdef\n", encoding="utf-8")
    file.chmod(0o666)
    with raises_error(RecipeError, "INS-G007", match="chmod"):
        Keys(None, file)


def test_where_a_key_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    with raises_error(RecipeError, "INS-E004", match=r"serve\.host"):
        keys.load_keys(ANYWHERE, loopback_without_key=True)
    with raises_error(RecipeError, "INS-E004", match=r"serve\.loopback_without_key"):
        keys.load_keys(LOOPBACK, loopback_without_key=False)
    assert not keys.load_keys(LOOPBACK, loopback_without_key=True).required
    monkeypatch.setenv(keys.API_KEY_VARIABLE, "secret")
    assert keys.load_keys(ANYWHERE, loopback_without_key=False).required
