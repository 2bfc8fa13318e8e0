"""The note on the untuned base below the headline: has training brought what examples in the prompt do not?"""

from insource.config.schema.compare import TUNED
from insource.system.number_format import format_count, format_delta, format_delta_range, format_points
from insource.tasks import metric_label
from insource.tracking.scores.comparison import PairedResult, Scores


def describe_untuned_base(scores: Scores) -> str | None:
    """Return where the untuned base, with or without examples, is as good as the tuned model on the same rows.

    None if the tuned model is shown to be better in the deciding metric, and the base in no other metric. Of several
    bases the one with the smallest difference in the deciding metric is described.
    """
    pairs = [pair for pair in scores.comparisons if pair.a == TUNED and scores.systems[pair.b].kind == "base"]
    deciding = [pair for pair in pairs if pair.metric == scores.deciding_metric]
    if not deciding:
        return None
    closest = min(deciding, key=lambda pair: pair.delta)
    # The p-values are adjusted for the number of all exploratory comparisons.
    better_elsewhere = [
        pair
        for pair in pairs
        if pair.b == closest.b and pair is not closest and pair.ci_high < 0 and pair.p_adjusted < pair.alpha
    ]
    if closest.ci_low > 0 and not better_elsewhere:
        return None
    shots = scores.systems[closest.b].shots
    title = "the untuned base" + (f" with {format_count(shots, 'similar example')}" if shots else "")
    sentences = [_describe_deciding(closest, title)]
    sentences += [
        f"In {metric_label(pair.metric)} the base is better by {_format_advantage(pair)}." for pair in better_elsewhere
    ]
    if shots and scores.systems[TUNED].shots == 0:
        sentences.append(f"SET=train.shots={shots} trains with such examples.")
    return " ".join(sentences)


def _describe_deciding(pair: PairedResult, title: str) -> str:
    metric, rows = metric_label(pair.metric), format_count(pair.n, "row")
    if pair.ci_high < 0:
        return (
            f"{title[0].upper()}{title[1:]} is better: {metric}, {_format_advantage(pair)} on {rows}. It needs no "
            "training: take it first."
        )
    verb = "is better" if pair.ci_low > 0 else "is not shown to be better"
    return (
        f"The tuned model {verb} than {title}: {metric}, difference {format_delta(pair.delta)} points "
        f"({format_delta_range(pair.ci_low, pair.ci_high)}) on {rows}."
    )


def _format_advantage(pair: PairedResult) -> str:
    """Return how much the base is above the tuned model: 33.3 points (18.1 to 47.3)."""
    return f"{format_points(-pair.delta)} points ({format_points(-pair.ci_high)} to {format_points(-pair.ci_low)})"
