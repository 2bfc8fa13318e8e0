"""The systems of a comparison: tuned variants, untuned base, linear baselines, head, API models, files of answers.

tuned          the variant that serve.model selects      adapter merged int8   the other exported variants
               with the examples that it was trained with (train.shots)
tuned:3-shot   the same with the most similar train rows as examples (compare.tuned_shots)
base           the base before training, no examples     base:3-shot           with the most similar train rows
tfidf          a linear model                            encoder               the same on a sentence encoder
head           a classification head (compare.head)
openai:gpt...  each baseline of the recipe, by its name
"""

import os
from collections.abc import Sequence
from dataclasses import replace

from compare.records import SkippedSystem, System
from insource.config.errors import RecipeError
from insource.config.recipe import Recipe
from insource.config.schema.compare import ENCODER, HEAD, LINEAR, TUNED, UNTUNED_BASE, Baseline
from insource.system.number_format import format_count
from insource.tracking.run import Run
from serve.vllm import launch_plan


def list_systems(recipe: Recipe, run: Run) -> list[System]:
    """Return the systems of a comparison, the tuned model first.

    Raise RecipeError if the served variant was not exported, or if the recipe names a variant that does not exist.
    """
    tuned = _tuned_systems(recipe, run)
    systems = [*tuned, System(UNTUNED_BASE, "base", "untuned base")]
    if recipe.task.kind == "preference":
        return systems
    if recipe.compare.tuned_shots not in (0, recipe.train.shots):
        systems.insert(1, with_examples(tuned[0], recipe.compare.tuned_shots))
    if shots := recipe.compare.base_shots:
        systems.append(
            System(f"{UNTUNED_BASE}:{shots}-shot", "base", f"untuned base{_examples_note(shots)}", shots=shots)
        )
    if recipe.task.kind == "classification":
        model = f"{'one-vs-rest ' if recipe.task.task_name == 'multilabel' else ''}logistic regression"
        systems.append(System(LINEAR, "linear", f"TF-IDF + {model}"))
        if recipe.compare.encoder:
            systems.append(System(ENCODER, "linear", f"sentence encoder + {model}"))
        if recipe.compare.head:
            systems.append(System(HEAD, "head", "classification head (LoRA)"))
    else:
        systems.append(System(LINEAR, "nearest", "answer of the most similar train row"))
    return systems + [_api_system(baseline) for baseline in recipe.compare.baselines]


def api_systems(recipe: Recipe) -> list[System]:
    """Return the API models of a comparison, including those that cannot be queried."""
    return [system for system in map(_api_system, recipe.compare.baselines) if system.kind == "closed"]


def fallback_names(recipe: Recipe) -> list[str]:
    """Return the names of systems that may answer below the threshold, by priority.

    The order: the recipe's gateway baseline, the baseline of its routing target, the plan's baseline, then all API
    models.
    """
    route, primary = recipe.route, recipe.compare.primary
    names = [route.baseline, route.not_worse_than, primary.baseline if primary else None]
    return [*dict.fromkeys([*(name for name in names if name), *(system.name for system in api_systems(recipe))])]


def _tuned_systems(recipe: Recipe, run: Run) -> list[System]:
    available, requested = launch_plan.available_variants(run, recipe), recipe.compare.forms
    served, *_ = launch_plan.rank_variants(run, recipe, recipe.serve)
    variants = available if requested == "all" else [] if requested == "served" else list(requested)
    if unavailable := [variant for variant in variants if variant not in available]:
        raise RecipeError(
            f"compare.forms: run {run.id} has no variant {unavailable[0]}; it has "
            f"{', '.join(available) or 'nothing'}. `make export RECIPE={run.recipe_name}` writes merged and quantized "
            "models",
            code="INS-E001",
        )
    others = [variant for variant in variants if variant != served] if recipe.task.kind != "preference" else []
    return [
        _tuned_system(TUNED, served, recipe.train.shots),
        *(_tuned_system(_short_variant(variant), variant, recipe.train.shots) for variant in others),
    ]


def _tuned_system(name: str, variant: str, trained_shots: int) -> System:
    """Return a variant of the tuned model, with prompts as in training."""
    title = _tuned_title(variant, trained_shots)
    return System(name, "tuned", title, variant, shots=trained_shots, trained_shots=trained_shots)


def with_examples(tuned: System, shots: int) -> System:
    """Return the tuned model as a further system, with retrieved train rows as examples in its prompt."""
    assert tuned.variant is not None
    return replace(tuned, name=f"{TUNED}:{shots}-shot", title=_tuned_title(tuned.variant, shots), shots=shots)


def replace_tuned(systems: Sequence[System], variant: str) -> list[System]:
    """Return the systems with another variant as the tuned model, after its variant could not be served."""
    trained_shots = next(system.trained_shots for system in systems if system.kind == "tuned")
    tuned = _tuned_system(TUNED, variant, trained_shots)
    others = [system for system in systems if system.name not in (TUNED, _short_variant(variant))]
    return [
        tuned,
        *(
            with_examples(tuned, system.shots) if system.kind == "tuned" and not system.uses_tuned_scale else system
            for system in others
        ),
    ]


def to_skipped_system(system: System, reason: str) -> SkippedSystem:
    """Return the report entry of a tuned variant or its base that could not be served."""
    name = _short_variant(system.variant) if system.variant else system.name
    return SkippedSystem(name, system.title, f"could not be served: {reason}")


def is_exploratory(system: System, recipe: Recipe) -> bool:
    """Return whether a system on a local server is exploratory: neither the served variant nor part of the plan.

    Such a system gets `compare.explore_rows` test rows.
    """
    primary = recipe.compare.primary
    planned = {primary.system, primary.baseline} if primary else set()
    return system.kind in ("tuned", "base") and system.name != TUNED and system.name not in planned


def _short_variant(variant: str) -> str:
    return variant.removeprefix("quantized/")


def _tuned_title(variant: str, shots: int) -> str:
    return f"tuned ({_short_variant(variant)}){_examples_note(shots)}"


def _examples_note(shots: int) -> str:
    return f", {format_count(shots, 'similar example')}" if shots else ""


def _api_system(baseline: Baseline) -> System:
    if baseline.provider == "file":
        return System(baseline.display_name, "file", baseline.display_name, baseline=baseline)
    title = baseline.display_name + _examples_note(baseline.shots)
    if baseline.is_loopback:
        title = f"{title} (stand-in on this machine)"
    return System(baseline.display_name, "closed", title, shots=baseline.shots, baseline=baseline)


def skipped_systems(systems: Sequence[System], recipe: Recipe) -> list[SkippedSystem]:
    """Return the API models that cannot be queried: data may not be sent to them, or there is no API key."""
    skipped = []
    for system in systems:
        if system.baseline is None or system.baseline.provider == "file":
            continue
        if not _data_may_be_sent(system.baseline, recipe):
            reason = (
                "privacy.data_may_leave is false, and its host is neither this machine nor in privacy.trusted_hosts"
            )
            skipped.append(SkippedSystem(system.name, system.title, reason))
        elif system.baseline.key_env and not os.environ.get(system.baseline.key_env):
            skipped.append(SkippedSystem(system.name, system.title, f"no key: {system.baseline.key_env} is not set"))
    return skipped


def _data_may_be_sent(baseline: Baseline, recipe: Recipe) -> bool:
    """Return whether rows may be sent to a baseline. Without a base_url the provider's host is not a trusted host."""
    if recipe.privacy.data_may_leave or baseline.is_loopback:
        return True
    return baseline.host is not None and baseline.host in recipe.privacy.trusted_hosts
