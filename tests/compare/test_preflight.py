"""What is checked of all baselines before anybody is paid and before the test set is read."""

from dataclasses import replace
from pathlib import Path

import pytest

from compare import preflight
from compare.systems import api_models, catalog
from compare.systems.responses import ComparisonContext
from insource.backends.types import DUMMY_API_KEY
from insource.config.errors import RecipeError
from insource.config.load import load
from insource.config.recipe import Recipe
from insource.config.schema.compare import Baseline
from tests.compare.test_api_models import Made
from tests.compare.test_api_models import make_context as make_context
from tests.helpers import commands
from tests.helpers.errors import raises_error
from tests.helpers.provider.faulty_provider import Provider, run_provider

PRICE = "{input_usd_per_million: 1, output_usd_per_million: 1}"


def recipe(*baselines: str) -> Recipe:
    return load("classifier", (f"compare.baselines=[{', '.join(baselines)}]",), "cpu").recipe


def check(context: ComparisonContext, loaded: Recipe) -> None:
    systems = [catalog._api_system(baseline) for baseline in loaded.compare.baselines]
    left_out = {system.name for system in catalog.skipped_systems(systems, loaded)}
    preflight.check(replace(context, recipe=loaded), [system for system in systems if system.name not in left_out])


def test_everything_that_would_end_the_comparison_is_told_at_once(
    make_context: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "x")
    path = tmp_path / "twice.jsonl"
    path.write_text('{"id": "r0", "output": "a"}\n{"id": "r0", "output": "b"}\n', encoding="utf-8")
    loaded = recipe(
        "{provider: openai, model: gpt-6-luna}",
        "{provider: openai, model: nobody-lists-this}",
        "{provider: openai, model: nor-this, base_url: 'https://models.example.org/v1', name: elsewhere}",
        "{provider: openai, model: a-stand-in, base_url: 'http://127.0.0.1:9/v1'}",
        f"{{provider: file, path: '{path}', name: today}}",
        f"{{provider: file, path: '{tmp_path / 'none.jsonl'}', name: lost}}",
    )
    with raises_error(RecipeError, "INS-A002") as error:
        check(make_context(), loaded)
    lines = str(error.value).splitlines()
    assert len(lines) == 5
    assert "the price of openai:nobody-lists-this is unknown" in lines[0] and "set its price: {input_usd" in lines[0]
    assert "the price of elsewhere is unknown" in lines[1]
    assert "elsewhere: OPENAI_API_KEY is not sent to https://models.example.org/v1" in lines[2]
    assert "twice.jsonl:2: id 'r0' is in line 1 already" in lines[3]
    assert "there is no file" in lines[4]


def test_nothing_is_wrong_with_what_is_not_run(make_context: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a key nobody is asked, so that nobody needs a price."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    check(make_context(), recipe("{provider: openai, model: nobody-lists-this}"))


@pytest.mark.parametrize(
    ("baseline", "key"),
    [
        ({"provider": "openai"}, "OPENAI_API_KEY"),
        ({"provider": "openai", "base_url": "https://eu.api.openai.com/v1"}, "OPENAI_API_KEY"),
        ({"provider": "openai", "base_url": "https://API.OpenAI.com/v1"}, "OPENAI_API_KEY"),
        ({"provider": "openai", "base_url": "http://api.openai.com/v1"}, None),
        ({"provider": "openai", "base_url": "https://api.openai.com.example/v1"}, None),
        ({"provider": "openai", "base_url": "https://notapi.openai.com/v1"}, None),
        ({"provider": "openai", "base_url": "https://api.openai.com@evil.example/v1"}, None),
        ({"provider": "openai", "api": "decisions", "base_url": "https://gateway.example/v1"}, None),
        ({"provider": "openai", "api": "systemone", "base_url": "https://api.typesafe.ai/v1"}, "TYPESAFE_API_KEY"),
        ({"provider": "openai", "api": "systemone", "base_url": "https://ollama.example/v1"}, None),
        ({"provider": "anthropic", "base_url": "https://api.anthropic.com"}, "ANTHROPIC_API_KEY"),
        ({"provider": "anthropic", "base_url": "https://gateway.example"}, None),
        ({"provider": "azure", "base_url": "https://ours.openai.azure.com"}, "AZURE_OPENAI_API_KEY"),
        ({"provider": "azure", "base_url": "https://ours.example.com"}, None),
    ],
)
def test_a_key_goes_to_its_providers_own_hosts_alone(
    make_context: Made, monkeypatch: pytest.MonkeyPatch, baseline: dict[str, str], key: str | None
) -> None:
    for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "AZURE_OPENAI_API_KEY", "TYPESAFE_API_KEY"):
        monkeypatch.setenv(name, f"the key of {name}")
    parsed = Baseline.model_validate({"model": "m", **baseline})
    context = make_context()
    assert parsed.key_env == key and bool(parsed.withheld_key_env) is (key is None)
    assert api_models.build_endpoint(parsed, context.dataset).api_key == (f"the key of {key}" if key else DUMMY_API_KEY)
    messages = list(preflight.unnamed_keys(context, [catalog._api_system(parsed)]))
    assert bool(messages) is (key is None) and all("api_key_env" in str(message) for message in messages)
    explicit = parsed.model_copy(update={"api_key_env": "OPENAI_API_KEY"})
    assert explicit.key_env == "OPENAI_API_KEY" and explicit.withheld_key_env is None, "who names it has chosen"


def test_a_stand_in_on_this_machine_needs_no_key_and_gets_none(
    make_context: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "x")
    baseline = Baseline(provider="openai", model="m", base_url="http://127.0.0.1:8000/v1")
    assert baseline.key_env is None and baseline.withheld_key_env is None
    assert api_models.build_endpoint(baseline, make_context().dataset).api_key == DUMMY_API_KEY


@pytest.mark.parametrize("options", [(), ("--dry-run",)])
def test_a_comparison_that_cannot_end_does_not_begin(make_context: Made, options: tuple[str, ...]) -> None:
    """The first baseline has a price and answers; the second has none: nobody is asked, and the test set stays shut."""
    trained_run, provider = make_context().run, Provider()
    with run_provider(provider) as address:
        priced = f"{{provider: openai, model: m, base_url: '{address}/v1', name: first, price: {PRICE}}}"
        unpriced = (
            "{provider: openai, model: m, base_url: 'https://models.invalid/v1', name: second, api_key_env: PATH}"
        )
        args = [f"compare.baselines=[{priced}, {unpriced}]", "compare.primary.baseline=first", "compare.budget_usd=5"]
        completed = commands.run_command(
            trained_run.folder.parents[1], "compare", "classifier", *args, "--run", trained_run.id, *options
        )
    assert completed.returncode == 2, completed.stderr
    assert (
        "error[INS-A002]: compare.baselines: the price of second is unknown" in completed.stderr
        and "Traceback" not in completed.stderr
    )
    assert not provider.attempts
    assert not (trained_run.folder.parent / "ledger.jsonl").exists() and trained_run.stage("compare").state is None
