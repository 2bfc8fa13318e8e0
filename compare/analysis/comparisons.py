"""Differences between systems: paired differences, agreement, confusion matrices and disagreements.

paired_differences([tuned, luna], primary)
    [PairedResult(a="tuned", b="openai:gpt-6-luna", metric="accuracy", delta=0.031, ci_low=0.012, ...)]

Two systems are compared on the rows that both got. An exploratory system gets a subset of the test rows. Rows that an
INCOMPLETE system did not get are in no figure.
"""

from collections.abc import Sequence

from compare.analysis.system_scores import EXPLORATORY_ALPHA, SystemScores, fraction_true
from compare.eval_dataset import EvalDataset, cluster_ids
from insource.config.schema.compare import Primary
from insource.stats import paired
from insource.tracking.scores.comparison import ConfusionMatrix, Disagreement, PairedResult

EXPLORATORY_MARGIN = 0.02


def paired_differences(scored_systems: Sequence[SystemScores], primary: Primary | None) -> list[PairedResult]:
    """Return the planned paired difference, and those of the tuned model to every other system in every metric.

    The p-values of the latter are adjusted for their number (Holm).
    """
    by_name = {scored.name: scored for scored in scored_systems}
    results = []
    if primary and primary.system in by_name and primary.baseline in by_name:
        results.append(_compare_pair(by_name[primary.system], by_name[primary.baseline], primary.metric, primary))
    tuned, others = scored_systems[0], scored_systems[1:]
    explored = [
        _compare_pair(tuned, scored, metric, None, primary)
        for scored in others
        for metric in tuned.metric_stats
        if metric in scored.metric_stats
        and (primary is None or (tuned.name, scored.name, metric) != (primary.system, primary.baseline, primary.metric))
    ]
    adjusted = paired.holm([comparison.p_value for comparison in explored])
    return results + [
        comparison.model_copy(update={"p_adjusted": p}) for comparison, p in zip(explored, adjusted, strict=True)
    ]


def agreement(scored_systems: Sequence[SystemScores]) -> dict[str, float]:
    """Return {pair: fraction of common rows with the same answer} for the tuned model and each other system."""
    tuned = scored_systems[0]
    return {
        f"{tuned.name} | {scored.name}": fraction_true(
            a.value == b.value and a.problem is None and b.problem is None
            for index, other_index in shared_positions(tuned, scored)
            for a, b in [(tuned.parsed[index], scored.parsed[other_index])]
        )
        for scored in scored_systems[1:]
    }


def confusion(scored_systems: Sequence[SystemScores], dataset: EvalDataset) -> dict[str, ConfusionMatrix]:
    """Return a confusion matrix for each system, with targets as rows.

    {} for tasks without labels. Also {} for several labels per row, as it is unknown which label replaces which.
    """
    if not dataset.task.HAS_LABELS or dataset.task.IS_MULTILABEL:
        return {}
    targets = [row["target"] for row in dataset.test]
    labels = list(dict.fromkeys([*dataset.spec.labels, *targets]))
    label_index = {label: index for index, label in enumerate(labels)}
    matrices = {}
    for scored in scored_systems:
        counts = [[0] * (len(labels) + 1) for _ in labels]
        for row, parsed in zip(scored.counted_rows, scored.parsed, strict=True):
            counts[label_index[row["target"]]][len(labels) if parsed.problem else label_index[parsed.value]] += 1
        matrices[scored.name] = ConfusionMatrix(labels=[*labels, "(no valid answer)"], counts=counts)
    return matrices


def disagreements(a: SystemScores, b: SystemScores, dataset: EvalDataset, max_rows: int = 500) -> list[Disagreement]:
    """Return the rows with different answers of two systems. Rows that only one system has right come first."""
    entries = []
    for position_a, position_b in shared_positions(a, b):
        index_a, index_b = a.counted_positions[position_a], b.counted_positions[position_b]
        row, first, second = a.rows[index_a], a.predictions.parsed[index_a], b.predictions.parsed[index_b]
        if first.problem is None and second.problem is None and first.value == second.value:
            continue
        entries.append(
            Disagreement(
                id=row["id"],
                input=row["input"]["text"],
                target=dataset.task.answer_text(dataset.spec, row["target"]),
                answers={scored.name: _display_answer(scored, index) for scored, index in ((a, index_a), (b, index_b))},
                correct={scored.name: bool(scored.correct[index]) for scored, index in ((a, index_a), (b, index_b))},
                confidence=a.confidences[index_a],
            )
        )
    entries.sort(key=lambda entry: (sum(entry.correct.values()) != 1, entry.correct[a.name]))
    return entries[:max_rows]


def shared_positions(a: SystemScores, b: SystemScores) -> list[tuple[int, int]]:
    """Return the positions of the common rows, among the counted rows of a and among those of b, in the order of a."""
    positions_b = {b.rows[index]["id"]: position for position, index in enumerate(b.counted_positions)}
    ids = [a.rows[index]["id"] for index in a.counted_positions]
    return [(position, positions_b[row_id]) for position, row_id in enumerate(ids) if row_id in positions_b]


def _display_answer(scored: SystemScores, index: int) -> str:
    answer = scored.predictions.answers[index]
    return answer.output if answer.output is not None else f"(no answer: {answer.error or 'unknown'})"


def _compare_pair(
    a: SystemScores, b: SystemScores, metric: str, primary: Primary | None, reference: Primary | None = None
) -> PairedResult:
    settings = primary or reference
    alpha, margin = (settings.alpha, settings.margin) if settings else (EXPLORATORY_ALPHA, EXPLORATORY_MARGIN)
    positions = shared_positions(a, b)
    clusters = cluster_ids([a.counted_rows[index] for index, _ in positions])
    first = a.metric_stats[metric].subset([index for index, _ in positions])
    second = b.metric_stats[metric].subset([index for _, index in positions])
    difference = paired.compute_paired_difference(first, second, clusters, alpha=alpha)
    conclusion = paired.classify_difference(difference, margin)
    return PairedResult(
        a=a.name,
        b=b.name,
        metric=metric,
        delta=difference.delta,
        ci_low=difference.low,
        ci_high=difference.high,
        p_value=difference.p_value,
        p_adjusted=difference.p_value,
        test=difference.test,
        alpha=alpha,
        margin=margin,
        n=difference.n,
        discordant=difference.discordant,
        mde=difference.mde,
        family="primary" if primary else "exploratory",
        conclusion=conclusion,
        rows_to_decide=paired.estimate_required_rows(difference, margin) if conclusion == "undecided" else None,
    )
