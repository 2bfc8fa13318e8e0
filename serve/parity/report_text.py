"""Text of parity results: a line for the terminal, and the tables of parity.md."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from insource.config.schema.serving_and_cost import Parity
from insource.stats.paired import PairedDifference
from insource.tasks import metric_label
from serve.parity.check import ParityResult, SameWeightsAgreement

_MAX_MISMATCHES = 5


def console_line(name: str, result: ParityResult) -> str:
    """Return the parity of one served model as a line for the terminal."""
    score, difference = result.score_difference, result.score_difference.difference
    parts = [f"{name}: {result.prompt_ids_equal:.1%} of {result.n} prompts read as trained"]
    if result.same_weights:
        parts.append(f"{result.same_weights.agreement:.1%} of answers as transformers gives them with these weights")
        if result.same_weights.close:
            parts.append(f"{len(result.same_weights.close)} of {result.same_weights.n} differ within rounding")
    parts.append(
        f"{metric_label(score.metric)} {score.value:.1%}, trained weights {score.trained:.1%} "
        f"(difference {difference.delta:+.1%}, 95% interval {difference.low:+.1%} to {difference.high:+.1%})"
    )
    return "; ".join(parts)


def parity_markdown(name: str, report: Mapping[str, Any], results: Sequence[ParityResult], parity: Parity) -> str:
    """Return parity.md: a table with one row per served model, then mismatches and variation between concurrencies."""
    metric = metric_label(results[0].score_difference.metric)
    rows = [
        f"| {result.variant} | {result.prompt_ids_equal:.1%} | {_format_agreement(result.same_weights)} | "
        f"{result.score_difference.value:.1%} | {_format_interval(result.score_difference.difference)} | "
        f"{result.score_difference.judge(parity.score_drop)} | {report['start_seconds'][result.variant]:.0f} s |"
        for result in results
    ]
    score = results[0].score_difference
    validity_rows = "\n".join(
        f"| {result.variant} | {mode} | {fraction:.1%} of {n} |"
        for result in results
        for mode, (fraction, n) in result.validity.items()
    )
    mismatches = "\n".join(
        line
        for result in results
        if result.same_weights
        for line in _format_mismatches(result.variant, result.same_weights)
    )
    variations = "\n".join(
        f"- {variation['which']}, {variation['concurrency']} at a time: {variation['differ']} of {variation['n']} "
        "answers differ from those one at a time"
        for variation in report["repeated"]
    )
    return f"""# {name}: is what is served what was trained?

{results[0].n} validation rows. The weights that were trained: {metric} {score.trained:.1%}.

| served | prompt ids | same weights: equal answers | {metric} | difference to the trained (95%) | conclusion | start |
|---|---|---|---|---|---|---|
{chr(10).join(rows)}

The conclusion is by the interval: *worse* where all of it is more than {parity.score_drop:.1%} below
(serve.parity.score_drop), *non-inferior* where none of it is, *superior* where all of it is above 0, else *undecided*.

| served | constraint | answers that the task can read |
|---|---|---|
{validity_rows}

## Answers that differ though the weights are the same

{mismatches or "None."}

Not among them, where 16 bits are computed in: rows in which the two closest tokens of transformers are nearer to each
other than rounding. Neither answer is the wrong one there; they count as equal, and their number stands above.

## The same rows again

{variations or "Not repeated."}
"""


def _format_interval(difference: PairedDifference) -> str:
    return f"{difference.delta:+.1%} ({difference.low:+.1%} to {difference.high:+.1%})"


def _format_agreement(same: SameWeightsAgreement | None) -> str:
    if same is None:
        return "no such weights in transformers"
    close = f", and {len(same.close)} within rounding" if same.close else ""
    return f"{same.agreement:.1%} of {same.n}{close}"


def _format_mismatches(variant: str, same: SameWeightsAgreement) -> list[str]:
    lines = [
        f"- {variant}, row {mismatch.id}: {mismatch.answer!r}, in transformers {mismatch.reference!r}"
        + (
            f", whose closest token was only {math.exp(mismatch.margin):.3g} times as probable as the next"
            if mismatch.margin
            else ""
        )
        for mismatch in same.flips[:_MAX_MISMATCHES]
    ]
    return (
        [*lines, f"- {variant}: and {len(same.flips) - _MAX_MISMATCHES} more"]
        if len(same.flips) > _MAX_MISMATCHES
        else lines
    )
