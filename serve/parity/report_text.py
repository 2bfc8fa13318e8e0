"""What parity found, in words: lines for the terminal, and the table that `make parity` writes."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from insource.config.schema.serving_and_cost import Parity
from insource.stats.paired import PairedDifference
from insource.tasks import metric_label
from serve.parity.check import ParityResult, SameWeightsAgreement

_MAX_MISMATCHES = 5


def console_lines(name: str, found: ParityResult) -> list[str]:
    """Returns what was found of one served model, for the terminal."""
    other, seen = found.other, found.other.difference
    told = [f"{name}: {found.prompt_ids_equal:.1%} of {found.n} prompts read as trained"]
    if found.same:
        told.append(f"{found.same.agreement:.1%} of answers as transformers gives them with these weights")
        if found.same.close:
            told.append(f"{len(found.same.close)} of {found.same.n} differ within rounding")
    told.append(
        f"{metric_label(other.metric)} {other.value:.1%}, trained weights {other.trained:.1%} "
        f"(difference {seen.delta:+.1%}, 95% interval {seen.low:+.1%} to {seen.high:+.1%})"
    )
    return ["; ".join(told)]


def parity_markdown(name: str, report: Mapping[str, Any], founds: Sequence[ParityResult], parity: Parity) -> str:
    """Returns parity.md: one row a served model, then what differs and how the answers vary."""
    metric = metric_label(founds[0].other.metric)
    rows = [
        f"| {one.which} | {one.prompt_ids_equal:.1%} | {_format_agreement(one.same)} | {one.other.value:.1%} | "
        f"{_format_interval(one.other.difference)} | "
        f"{one.other.judged(parity.score_drop)} | {report['start_seconds'][one.which]:.0f} s |"
        for one in founds
    ]
    first = founds[0].other
    ways = "\n".join(
        f"| {one.which} | {way} | {share:.1%} of {n} |" for one in founds for way, (share, n) in one.valid.items()
    )
    flips = "\n".join(line for one in founds if one.same for line in _format_mismatches(one.which, one.same))
    repeated = "\n".join(
        f"- {one['which']}, {one['concurrency']} at a time: {one['differ']} of {one['n']} answers differ from those "
        "one at a time"
        for one in report["repeated"]
    )
    return f"""# {name}: is what is served what was trained?

{founds[0].n} validation rows. The weights that were trained: {metric} {first.trained:.1%}.

| served | prompt ids | same weights: equal answers | {metric} | against the trained weights (95%) | judged | start |
|---|---|---|---|---|---|---|
{chr(10).join(rows)}

Judged by the interval: *worse* where all of it is more than {parity.score_drop:.1%} below (serve.parity.score_drop),
*non-inferior* where none of it is, *superior* where all of it is above 0, else *undecided*.

| served | constraint | answers that the task can read |
|---|---|---|
{ways}

## Answers that differ though the weights are the same

{flips or "None."}

Not among them, where 16 bits are computed in: rows in which the two closest tokens of transformers are nearer to each
other than rounding. Neither answer is the wrong one there; they count as equal, and their number stands above.

## The same rows again

{repeated or "Not asked again."}
"""


def _format_interval(difference: PairedDifference) -> str:
    return f"{difference.delta:+.1%} ({difference.low:+.1%} to {difference.high:+.1%})"


def _format_agreement(same: SameWeightsAgreement | None) -> str:
    if same is None:
        return "no such weights in transformers"
    close = f", and {len(same.close)} within rounding" if same.close else ""
    return f"{same.agreement:.1%} of {same.n}{close}"


def _format_mismatches(which: str, same: SameWeightsAgreement) -> list[str]:
    told = [
        f"- {which}, row {one.id}: {one.answer!r}, in transformers {one.reference!r}"
        + (
            f", whose closest token was only {math.exp(one.margin):.3g} times as probable as the next"
            if one.margin
            else ""
        )
        for one in same.flips[:_MAX_MISMATCHES]
    ]
    return (
        [*told, f"- {which}: and {len(same.flips) - _MAX_MISMATCHES} more"]
        if len(same.flips) > _MAX_MISMATCHES
        else told
    )
