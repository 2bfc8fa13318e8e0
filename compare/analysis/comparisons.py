"""How systems differ: paired differences row by row, agreement, which label is taken for which, and disagreements.

paired_differences([tuned, luna], primary)
    [{"a": "tuned", "b": "openai:gpt-6-luna", "metric": "accuracy", "delta": 0.031, "ci_low": 0.012, ...}]

Two systems are compared on the rows that were put to both: one that only explores is asked a part of the test rows, and
of an INCOMPLETE one the rows that it was not asked are in no figure.
"""

from collections.abc import Sequence
from typing import Any

from compare.analysis.system_scores import EXPLORATORY_ALPHA, SystemScores, fraction_true
from compare.eval_dataset import EvalDataset, cluster_ids
from insource.config.schema.compare import Primary
from insource.stats import paired

EXPLORATORY_MARGIN = 0.02


def paired_differences(every: Sequence[SystemScores], primary: Primary | None) -> list[dict[str, Any]]:
    """Returns the paired differences: the planned one, and of the tuned model to every other system by every metric,
    their p-values adjusted for their number (Holm)."""
    by_name = {one.name: one for one in every}
    found = []
    if primary and primary.system in by_name and primary.baseline in by_name:
        found.append(_compare_pair(by_name[primary.system], by_name[primary.baseline], primary.metric, primary))
    tuned, others = every[0], every[1:]
    explored = [
        _compare_pair(tuned, other, metric, None, primary)
        for other in others
        for metric in tuned.tallies
        if metric in other.tallies
        and (primary is None or (tuned.name, other.name, metric) != (primary.system, primary.baseline, primary.metric))
    ]
    adjusted = paired.holm([one["p_value"] for one in explored])
    return found + [{**one, "p_adjusted": p} for one, p in zip(explored, adjusted, strict=True)]


def agreement(every: Sequence[SystemScores]) -> dict[str, float]:
    """Returns the share of rows, of those that both were asked, that the tuned model and another system read alike."""
    tuned = every[0]
    return {
        f"{tuned.name} | {other.name}": fraction_true(
            a.value == b.value and a.problem is None and b.problem is None
            for at, there in shared_positions(tuned, other)
            for a, b in [(tuned.parsed[at], other.parsed[there])]
        )
        for other in every[1:]
    }


def confusion(every: Sequence[SystemScores], material: EvalDataset) -> dict[str, Any]:
    """Returns which label was taken for which, a matrix a system, rows being targets; {} for tasks without labels, and
    of several labels a row: which of them stands for which is not known."""
    if not material.module.HAS_LABELS or material.module.IS_MULTILABEL:
        return {}
    targets = [row["target"] for row in material.test]
    labels = list(dict.fromkeys([*material.spec.labels, *targets]))
    at = {label: number for number, label in enumerate(labels)}
    found = {}
    for one in every:
        counts = [[0] * (len(labels) + 1) for _ in labels]
        for row, parsed in zip(one.counted_rows, one.parsed, strict=True):
            counts[at[row["target"]]][len(labels) if parsed.problem else at[parsed.value]] += 1
        found[one.name] = {"labels": [*labels, "(no valid answer)"], "counts": counts}
    return found


def disagreements(a: SystemScores, b: SystemScores, material: EvalDataset, most: int = 500) -> list[dict[str, Any]]:
    """Returns the rows that two systems answer otherwise, those first that one of them alone has right."""
    found = []
    for position_a, position_b in shared_positions(a, b):
        at, there = a.counted[position_a], b.counted[position_b]
        row, first, second = a.rows[at], a.found.parsed[at], b.found.parsed[there]
        if first.problem is None and second.problem is None and first.value == second.value:
            continue
        found.append(
            {
                "id": row["id"],
                "input": row["input"]["text"],
                "target": material.module.answer_text(material.spec, row["target"]),
                "answers": {one.name: _display_answer(one, where) for one, where in ((a, at), (b, there))},
                "right": {one.name: bool(one.right[where]) for one, where in ((a, at), (b, there))},
                "confidence": a.confidences[at],
            }
        )
    found.sort(key=lambda one: (sum(one["right"].values()) != 1, one["right"][a.name]))
    return found[:most]


def shared_positions(a: SystemScores, b: SystemScores) -> list[tuple[int, int]]:
    """Returns the positions, among the rows of a and of b that count, of the rows that both have, in their order."""
    there = {b.rows[at]["id"]: position for position, at in enumerate(b.counted)}
    ids = [a.rows[at]["id"] for at in a.counted]
    return [(position, there[row]) for position, row in enumerate(ids) if row in there]


def _display_answer(one: SystemScores, at: int) -> str:
    answer = one.found.answers[at]
    return answer.output if answer.output is not None else f"(no answer: {answer.error or 'unknown'})"


def _compare_pair(
    a: SystemScores, b: SystemScores, metric: str, primary: Primary | None, like: Primary | None = None
) -> dict[str, Any]:
    asked = primary or like
    alpha, margin = (asked.alpha, asked.margin) if asked else (EXPLORATORY_ALPHA, EXPLORATORY_MARGIN)
    positions = shared_positions(a, b)
    clusters = cluster_ids([a.counted_rows[at] for at, _ in positions])
    first = a.tallies[metric].at([at for at, _ in positions])
    second = b.tallies[metric].at([there for _, there in positions])
    found = paired.compute_paired_difference(first, second, clusters, alpha=alpha)
    judged = paired.classify_difference(found, margin)
    return {
        "a": a.name,
        "b": b.name,
        "metric": metric,
        "delta": found.delta,
        "ci_low": found.low,
        "ci_high": found.high,
        "p_value": found.p_value,
        "p_adjusted": found.p_value,
        "test": found.test,
        "alpha": alpha,
        "margin": margin,
        "n": found.n,
        "discordant": found.discordant,
        "mde": found.mde,
        "family": "primary" if primary else "exploratory",
        "judged": judged,
        "rows_to_decide": paired.estimate_required_rows(found, margin) if judged == "undecided" else None,
    }
