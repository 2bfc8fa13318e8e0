"""Asks every system, one after the other: servers of ours are started for it, providers are called, files are read.

Each answer is on disk before it counts (`runs/<recipe>/.answers/`), so a comparison that was killed goes on where it
was, and one that is repeated asks for nothing that it knows.
"""

import sys
from collections.abc import Sequence

from compare import answers_file, linear, owned, preferences, providers
from compare.gathered import Gathered, Place
from compare.predictions import Answer
from compare.systems import System
from recipes.schema_compare import ENCODER


def everything(place: Place, systems: Sequence[System]) -> list[Gathered]:
    """Returns what each system answered, in their order. Raises StageError where a server of ours fails, or serves
    something else than was trained: providers come last, so that nobody was paid by then."""
    if place.material.module.OBJECTIVE == "prefer":
        return preferences.everything(place, systems)
    place.answers.mkdir(exist_ok=True)
    found: dict[str, Gathered] = {}
    for one in systems:
        if one.kind in ("linear", "nearest"):
            found[one.name] = learnt(place, one)
        elif one.kind == "file":
            found[one.name] = providers.given(place, one, answers_file.rules_of(place.recipe))
    for together in servers(systems):
        found |= owned.served(place, together)
    found |= providers.everyone(place, [one for one in systems if one.kind == "closed"])
    return [found[one.name] for one in systems]


def servers(systems: Sequence[System]) -> list[list[System]]:
    """Returns the systems that vLLM has to serve, those together that one process serves: the base goes with an adapter
    that it bears, and each other form is alone."""
    tuned, base = ([one for one in systems if one.kind == kind] for kind in ("tuned", "base"))
    found = [[one, *base] if one.which == "adapter" else [one] for one in tuned]
    return [*found, base] if base and all(one.which != "adapter" for one in tuned) else found


def learnt(place: Place, system: System) -> Gathered:
    """Returns what a linear model says, trained here on the rows that training had."""
    material, encoder = place.material, place.recipe.compare.encoder
    print(f"fitting   {system.title} on {len(material.train):,} rows", file=sys.stderr, flush=True)
    if system.name == ENCODER:
        assert encoder is not None
        guesses = linear.encoded(material.train, material.test, material.answers, encoder)
    else:
        guesses = linear.guesses(material.train, material.test, material.answers, material.module.LABELLED)
    found = [
        Answer(row["id"], one.output, model_id=system.name, log_probability=one.log_probability)
        for row, one in zip(material.test, guesses, strict=True)
    ]
    return Gathered(system, found)
