"""Prefer one answer to another: training learns preferences from pairs of answers to one prompt.

    row      {"id": "M00017", "input": {"text": "Can I pay the plan by the year?"},
              "target": {"chosen": "Yes, under Plan in the app.", "rejected": "Yes, and I promise a discount!"}}
    prompt   [{"role": "user", "content": "Answer the customer ...\\n\\nInput:\\nCan I pay the plan by the year?"}]
    answers  "Yes, under Plan in the app." rather than "Yes, and I promise a discount!"

Training is DPO (Rafailov et al. 2023, arXiv:2305.18290). Validation decodes no text. It computes the log-probability
of both answers under the model and under the untuned base.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from insource.config.errors import RecipeError
from insource.config.metric_names import METRICS
from insource.config.recipe import Recipe
from insource.stats import metric_stats
from insource.stats.metric_stats import MetricStats
from insource.tasks.chat_messages import Messages, parse_messages, parse_transcript, read_answer, split_prompt

# TaskKind needs Spec, make_spec and messages in this module too. The prompt is that of generation.
from insource.tasks.generation import EMPTY_ANSWER
from insource.tasks.generation import Spec as Spec
from insource.tasks.generation import make_spec as make_spec
from insource.tasks.generation import messages as messages
from insource.tasks.parsed_answer import ParsedAnswer
from insource.tasks.source_record import SourceRecord, UnusableRowError, clean_answer, read_input
from insource.tasks.task_kind import Objective
from insource.text.text_keys import clean

NAME = "preference"
BREAKDOWN_NAME, BREAKDOWN_METRIC = "groups of rows", "preference accuracy"
OBJECTIVE: Objective = "prefer"
HAS_LABELS, IS_FREE_TEXT, IS_MULTILABEL = False, True, False

PAIR_KEYS = ("chosen", "rejected")
# A prompt may end in a short answer by chance ("yes or no?"), but not in one of this length.
LONG_ANSWER_CHARACTERS = 20


def preference_pair(spec: Spec, target: Mapping[str, str]) -> tuple[str, str]:
    """Return the chosen and the rejected answer."""
    return target["chosen"], target["rejected"]


def answer_text(spec: Spec, target: Mapping[str, str]) -> str:
    """Return the text that the model should answer: the chosen answer."""
    return target["chosen"]


def training_answers(spec: Spec, target: Mapping[str, str]) -> list[str]:
    """Return the answer texts that training uses for a target: both."""
    return [*preference_pair(spec, target)]


def answer_columns(recipe: Recipe) -> dict[str, str]:
    """Return {recipe key: column} of both answers. Raises RecipeError if data.columns.messages is set."""
    columns = recipe.data.columns
    if columns.messages is not None:
        raise RecipeError(
            "data.columns.messages: a conversation has one answer, and kind preference needs two: leave messages out, "
            "and name the columns of both as chosen and rejected; they may hold conversations",
            code="INS-R006",
        )
    return {"data.columns.chosen": columns.chosen, "data.columns.rejected": columns.rejected}


def read_source_row(values: Mapping[str, Any], recipe: Recipe) -> SourceRecord:
    """Return the prompt and both answers of a source row, in TRL's preference format.

    The answers are texts, or lists of messages that end in an assistant turn. The turns before it are the prompt and
    must be equal on both sides. Without such turns the text column has the prompt, as text or messages. If the text
    column is one of the answers, the answers may be complete conversations in one text, as in hh-rlhf. Raises
    UnusableRowError.
    """
    columns = recipe.data.columns
    names = (columns.chosen, columns.rejected)
    sides: list[Any] = [values.get(name) for name in names]
    column = columns.text if isinstance(columns.text, str) else ""
    prompt = values.get(column)
    prompt_inside = column in names
    conversations = _parse_sides(sides, names, prompt_inside)
    if conversations:
        sides = [read_answer(conversation[-1]) for conversation in conversations]
        prompt = conversations[0][:-1] or (None if prompt_inside else prompt)
    if isinstance(prompt, list):
        turns = prompt if conversations and conversations[0][:-1] else parse_messages(prompt, column)
        system, text = split_prompt(turns)
        last_turn = turns[-1]["content"] if turns[-1]["role"] == "assistant" else ""
    else:
        system, text, last_turn = "", "" if prompt_inside else read_input(values, columns), ""
    _check_prompt(text, last_turn, sides)
    return SourceRecord(system, text, dict(zip(PAIR_KEYS, sides, strict=True)))


def _parse_sides(sides: Sequence[Any], names: Sequence[str], prompt_inside: bool) -> list[Messages]:
    """Return both sides as conversations that differ only in their last answer; [] if they are plain answers."""
    if any(isinstance(side, list) for side in sides):
        conversations = [parse_messages(side, name) for side, name in zip(sides, names, strict=True)]
    elif prompt_inside:
        conversations = [parse_transcript(side) if isinstance(side, str) else [] for side in sides]
        if not all(conversations):
            problem = "no conversation (a list of messages, or a text of turns '\\n\\nHuman: ...\\n\\nAssistant: ...')"
            raise UnusableRowError(
                "bad_pair", f"data.columns.text: the prompt cannot be read from an answer that is {problem}"
            )
    else:
        return []
    if any(conversation[-1]["role"] != "assistant" for conversation in conversations):
        raise UnusableRowError("bad_pair", "a conversation does not end in an answer of the assistant")
    if list(conversations[0][:-1]) != list(conversations[1][:-1]):
        raise UnusableRowError("bad_pair", "the two conversations differ before their last answers")
    return conversations


def _check_prompt(text: str, last_turn: str, sides: Sequence[Any]) -> None:
    """Raise UnusableRowError if the prompt, or its last assistant turn `last_turn`, ends in one of the answers.

    The prompt would contain the answer.
    """
    for side in (answer.strip() for answer in sides if isinstance(answer, str)):
        if (side and side == last_turn.strip()) or (
            len(side) >= LONG_ANSWER_CHARACTERS and text.rstrip().endswith(side)
        ):
            raise UnusableRowError(
                "bad_pair", "the prompt ends in one of the answers; name a column of the prompt alone"
            )


def normalize_target(target: Mapping[str, Any], recipe: Recipe, redact: Callable[[str], str]) -> str:
    """Return both answers as JSON, cleaned and after `redact`.

    Raises UnusableRowError if an answer is empty, or if both are equal.
    """
    sides = {side: redact(clean_answer(target[side], f"{side} answer")) for side in PAIR_KEYS}
    if sides["chosen"] == sides["rejected"]:
        raise UnusableRowError("same_answers", "chosen and rejected are the same answer")
    return json.dumps(sides, ensure_ascii=False)


def parse_target(text: str) -> dict[str, str]:
    """Return the target from its stored text."""
    return json.loads(text)  # type: ignore[no-any-return]


def equality_key(text: str, recipe: Recipe) -> str:
    """Return the text of both answers."""
    return text


def conflict_key(key: str, text: str) -> str:
    """Return the key of rows that may have only one target: prompt and both answers, in any order."""
    return "\x1f".join((key, *sorted(parse_target(text).values())))


def describe_answer(text: str, target: Mapping[str, str]) -> dict[str, float]:
    """Return lengths of one pair; data.html shows them over all rows."""
    chosen, rejected = len(target["chosen"]), len(target["rejected"])
    return {"chosen_characters": chosen, "rejected_characters": rejected, "chosen_longer": float(chosen > rejected)}


def grammar(spec: Spec) -> None:
    """Return None: the answer is unconstrained."""


def output_schema(spec: Spec) -> None:
    """Return None: the answer is unconstrained."""


def parse(spec: Spec, output: str) -> ParsedAnswer:
    """Return a decoded answer, cleaned, or problem `empty`. Scores use log-probabilities instead."""
    text = clean(output)
    return ParsedAnswer(text) if text else ParsedAnswer(None, EMPTY_ANSWER)


def score_rows(
    spec: Spec, targets: Sequence[Mapping[str, str]], answers: Sequence[ParsedAnswer]
) -> list[dict[str, float]]:
    """Return {"preference_accuracy", "reward_accuracy", "margin", "reward_margin"} of each row; accuracies are 0 or 1.

    The value of an answer has natural log-probabilities of complete answers: {"chosen", "rejected", "reference_chosen",
    "reference_rejected"}, and {"chosen_tokens", "rejected_tokens"}, stop tokens included. Equal log-probabilities count
    as not preferred. A row with a problem is 0 throughout.
    """
    scores = []
    for answer in answers:
        if answer.problem is not None:
            scores.append(dict.fromkeys(("preference_accuracy", "reward_accuracy", "margin", "reward_margin"), 0.0))
            continue
        values = answer.value
        margin = values["chosen"] / values["chosen_tokens"] - values["rejected"] / values["rejected_tokens"]
        reward_margin = (values["chosen"] - values["reference_chosen"]) - (
            values["rejected"] - values["reference_rejected"]
        )
        accuracies = {"preference_accuracy": float(margin > 0), "reward_accuracy": float(reward_margin > 0)}
        scores.append({**accuracies, "margin": margin, "reward_margin": reward_margin})
    return scores


def score(spec: Spec, targets: Sequence[Mapping[str, str]], answers: Sequence[ParsedAnswer]) -> dict[str, Any]:
    """Return {"n", "preference_accuracy", "mean_margin", "reward_accuracy", "mean_reward_margin", "invalid": {problem:
    count}, "per_part": {part: {"preference_accuracy", "n"}}}.

    preference_accuracy is the fraction of rows whose chosen answer has the higher mean log-probability per token.
    Without the division the shorter answer would nearly always win. mean_margin is the mean difference of the two, in
    nats per token.

    reward_accuracy is the fraction of rows whose chosen answer has the higher implicit reward of DPO: its
    log-probability minus that under the base. mean_reward_margin is the mean difference in nats, before multiplication
    by beta. Rewards are not divided by length, because base and model read the same tokens. Both are absent if every
    answer has the log-probability of its reference, as for the base itself.

    The parts are the rows whose chosen answer is shorter, longer, or of equal length. Raises ValueError without rows.
    """
    if not targets:
        raise ValueError("no rows to score")
    scores = score_rows(spec, targets, answers)
    problems = Counter(answer.problem for answer in answers if answer.problem is not None)
    metric_keys = {"preference_accuracy": "preference_accuracy", "mean_margin": "margin"}
    if _differs_from_reference(answers):
        metric_keys |= {"reward_accuracy": "reward_accuracy", "mean_reward_margin": "reward_margin"}
    return {
        "n": len(targets),
        **{name: _mean([row[key] for row in scores]) for name, key in metric_keys.items()},
        "invalid": dict(sorted(problems.items())),
        "per_part": _score_by_length(targets, [row["preference_accuracy"] for row in scores]),
    }


def compute_metric_stats(
    spec: Spec, targets: Sequence[Mapping[str, str]], answers: Sequence[ParsedAnswer]
) -> dict[str, MetricStats]:
    """Return preference_accuracy as sums over rows, and reward_accuracy if the answers have a reward."""
    scores = score_rows(spec, targets, answers)
    names = [name for name in METRICS[NAME] if name != "reward_accuracy" or _differs_from_reference(answers)]
    return {name: metric_stats.mean_metric([row[name] for row in scores]) for name in names}


def lowest_scoring(score: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Return the groups of rows with their preference accuracy, lowest first: by length, and the recipe's slices."""
    parts = dict(score["per_part"])
    for name, values in score.get("slices", {}).items():
        parts |= {f"{name} {value}": entry for value, entry in values.items()}
    return sorted(((name, entry["preference_accuracy"]) for name, entry in parts.items()), key=lambda entry: entry[1])


def _differs_from_reference(answers: Sequence[ParsedAnswer]) -> bool:
    """Return whether any answer has another log-probability than its reference."""
    values = [answer.value for answer in answers if answer.problem is None]
    return any(value[side] != value[f"reference_{side}"] for value in values for side in PAIR_KEYS)


def _score_by_length(targets: Sequence[Mapping[str, str]], correct: Sequence[float]) -> dict[str, dict[str, float]]:
    """Return the fraction of right rows by which answer is longer.

    A model that learns only length fails in one of the groups.
    """
    parts: dict[str, list[float]] = {}
    for target, value in zip(targets, correct, strict=True):
        longer = len(target["chosen"]) - len(target["rejected"])
        name = "chosen longer" if longer > 0 else "chosen shorter" if longer < 0 else "both as long"
        parts.setdefault(name, []).append(value)
    return {name: {"preference_accuracy": _mean(values), "n": len(values)} for name, values in sorted(parts.items())}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
