"""Write a text about a text: a summary, a reply, a rewritten record.

    row      {"id": "S00017", "input": {"text": "Customer: hi, my hub ..."}, "target": "Hub: silent. Wants a refund."}
    prompt   [{"role": "user", "content": "Sum up the conversation ...\\n\\nInput:\\nCustomer: hi, my hub ..."}]
    answer   "Hub: silent. Wants a refund."

Only the length of the answer is limited. The score is the word overlap with the target, which is cheap and
deterministic. Two good answers may share few words, so the scores compare systems and do not grade one.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from insource.config.metric_names import METRICS
from insource.config.recipe import Recipe
from insource.config.schema.data import Task
from insource.stats import metric_stats
from insource.stats.metric_stats import MetricStats
from insource.tasks import references
from insource.tasks.data_row import RowInput
from insource.tasks.parsed_answer import ParsedAnswer
from insource.tasks.source_record import SourceRecord, clean_answer, read_input, to_text
from insource.tasks.task_kind import Objective
from insource.tasks.words import split_words
from insource.text.text_keys import clean, duplicate_key

NAME = "generation"
BREAKDOWN_NAME, BREAKDOWN_METRIC = "groups of rows", "ROUGE-L"
OBJECTIVE: Objective = "imitate"
HAS_LABELS, IS_FREE_TEXT, IS_MULTILABEL = False, True, False

EMPTY_ANSWER = "empty"


@dataclass(frozen=True)
class Spec:
    """A generation task: its instruction."""

    instruction: str


def make_spec(task: Task, labels: Mapping[str, str], may_be_empty: bool = False) -> Spec:
    """Return the task as the prompt needs it. `labels` and `may_be_empty` are unused."""
    return Spec(task.instruction)


def messages(spec: Spec, row_input: RowInput) -> list[dict[str, str]]:
    """Return the conversation up to the answer: one user message, which every chat template accepts."""
    return [{"role": "user", "content": f"{spec.instruction}\n\nInput:\n{row_input['text']}"}]


def answer_text(spec: Spec, target: str) -> str:
    """Return the text that the model should answer."""
    return target


def training_answers(spec: Spec, target: str) -> list[str]:
    """Return the answer texts that training uses for a target: one."""
    return [target]


def answer_columns(recipe: Recipe) -> dict[str, str]:
    """Return {recipe key: column} of the answer."""
    columns = recipe.data.columns
    return columns.target_columns if columns.targets else {"data.columns.target": columns.target or "target"}


def read_source_row(values: Mapping[str, Any], recipe: Recipe) -> SourceRecord:
    """Return text and answer of a source row, unchanged."""
    columns = recipe.data.columns
    if columns.targets is not None:
        target, *other_targets = references.read_references(values, columns)
        return SourceRecord("", read_input(values, columns), target, other_targets)
    return SourceRecord("", read_input(values, columns), values.get(columns.target or "target"))


def normalize_target(target: Any, recipe: Recipe, redact: Callable[[str], str]) -> str:
    """Return the clean answer after `redact`. Raises UnusableRowError if it is empty."""
    return redact(clean_answer(target, "answer"))


def make_answer_reader(spec: Spec, normalize_labels: bool, separator: str | None = None) -> Callable[[Any], str]:
    """Return a function that leaves an answer unchanged, because `parse` cleans it."""
    return to_text


def parse_target(text: str) -> str:
    """Return the target from its stored text."""
    return text


def equality_key(text: str, recipe: Recipe) -> str:
    """Return the text itself: answers that differ in one word are different."""
    return text


def conflict_key(key: str, text: str) -> str:
    """Return the key of rows that may have only one target: input and answer, because two good answers may differ."""
    return f"{key}\x1f{text}"


def describe_answer(text: str, target: str) -> dict[str, float]:
    """Return length and word overlap with the input of one answer; data.html shows them over all rows."""
    input_words, answer_words = set(split_words(duplicate_key(text))), split_words(duplicate_key(target))
    return {"characters": len(target), "words_from_text": _mean([float(word in input_words) for word in answer_words])}


def grammar(spec: Spec) -> None:
    """Return None: the answer is unconstrained."""


def output_schema(spec: Spec) -> None:
    """Return None: the answer is unconstrained."""


def parse(spec: Spec, output: str) -> ParsedAnswer:
    """Return the output, cleaned as targets are, or problem `empty`."""
    text = clean(output)
    return ParsedAnswer(text) if text else ParsedAnswer(None, EMPTY_ANSWER)


def score_rows(spec: Spec, targets: Sequence[str], answers: Sequence[ParsedAnswer]) -> list[dict[str, float]]:
    """Return {"rouge_l", "chrf", "exact_match"} of each row, 0 to 1; all 0 for an answer with a problem.

    rouge_l is the F1 of the longest common subsequence of words (Lin 2004), by torchmetrics. Words are those of the
    duplicate key (insource/tasks/words.py), in any script; for ASCII they equal those of Google's rouge-score. chrf is
    the F2 of character n-grams up to 6 (Popović 2015), by sacrebleu with its defaults
    (nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no).
    """
    from sacrebleu.metrics.chrf import CHRF
    from torchmetrics.functional.text.rouge import rouge_score

    chrf = CHRF()
    scores = []
    for target, answer in zip(targets, answers, strict=True):
        if answer.problem is not None:
            scores.append({"rouge_l": 0.0, "chrf": 0.0, "exact_match": 0.0})
            continue
        rouge = rouge_score(answer.value, target, rouge_keys="rougeL", normalizer=duplicate_key, tokenizer=split_words)
        scores.append(
            {
                "rouge_l": float(rouge["rougeL_fmeasure"]),
                "chrf": chrf.sentence_score(answer.value, [target]).score / 100,
                "exact_match": float(answer.value == target),
            }
        )
    return scores


def nearest_target(spec: Spec, targets: Sequence[str], answer: ParsedAnswer) -> str:
    """Return the reference that is nearest to an answer, by ROUGE-L, then chrF; the first of several."""
    scores = score_rows(spec, targets, [answer] * len(targets))
    return max(
        zip(targets, scores, strict=True), key=lambda candidate: (candidate[1]["rouge_l"], candidate[1]["chrf"])
    )[0]


def score(spec: Spec, targets: Sequence[str], answers: Sequence[ParsedAnswer]) -> dict[str, Any]:
    """Return {"n", "rouge_l", "chrf", "exact_match", "length_ratio", "invalid": {problem: count}, "per_part": {part:
    {"rouge_l", "n"}}}.

    Each metric is the mean over rows (score_rows), so that rows can be resampled. An answer with a problem counts as
    wrong. length_ratio is the mean of answer characters / target characters, over answers without a problem; 0 if there
    are none. The parts are thirds of the rows by target length. Raises ValueError without rows.
    """
    if not targets:
        raise ValueError("no rows to score")
    scores = score_rows(spec, targets, answers)
    ratios = [
        len(answer.value) / len(target)
        for answer, target in zip(answers, targets, strict=True)
        if answer.problem is None
    ]
    problems = Counter(answer.problem for answer in answers if answer.problem is not None)
    return {
        "n": len(targets),
        **{name: _mean([row[name] for row in scores]) for name in METRICS[NAME]},
        "length_ratio": _mean(ratios),
        "invalid": dict(sorted(problems.items())),
        "per_part": _score_by_length(targets, [row["rouge_l"] for row in scores]),
    }


def compute_metric_stats(spec: Spec, targets: Sequence[str], answers: Sequence[ParsedAnswer]) -> dict[str, MetricStats]:
    """Return rouge_l, chrf and exact_match as sums over rows."""
    scores = score_rows(spec, targets, answers)
    return {name: metric_stats.mean_metric([row[name] for row in scores]) for name in METRICS[NAME]}


def lowest_scoring(score: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Return the groups of rows with their ROUGE-L, lowest first: thirds by length, and the recipe's slices."""
    parts = dict(score["per_part"])
    for name, values in score.get("slices", {}).items():
        parts |= {f"{name} {value}": entry for value, entry in values.items()}
    return sorted(((name, entry["rouge_l"]) for name, entry in parts.items()), key=lambda entry: entry[1])


def _score_by_length(targets: Sequence[str], rouge_l: Sequence[float]) -> dict[str, dict[str, float]]:
    """Return the mean of each third of the rows, named by its longest target; rows of one length stay together."""
    lengths = sorted(map(len, targets))
    edges = sorted({lengths[len(lengths) * part // 3 - 1] for part in (1, 2, 3) if len(lengths) * part >= 3})
    parts, low = {}, 0
    for edge in edges:
        group_scores = [value for target, value in zip(targets, rouge_l, strict=True) if low < len(target) <= edge]
        parts[f"targets of {low + 1} to {edge} characters"] = {"rouge_l": _mean(group_scores), "n": len(group_scores)}
        low = edge
    return parts


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
