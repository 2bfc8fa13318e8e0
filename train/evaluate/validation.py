"""What the model makes of the validation rows: before training, while it trains, and after.

Most kinds of task are decoded and parsed, as serving does (`Decoded`). A preference task is measured by how probable
the model finds the answer that was chosen, and the one that was rejected (`Compared`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

from insource.tasks import references, slice_name
from insource.tasks.parsed_answer import TRUNCATED, ParsedAnswer
from train.distributed import fsdp, world
from train.evaluate import log_likelihood
from train.evaluate.constrained_decoding import DecodedAnswer, decode_answers
from train.model import dequantize
from train.packing.packing_plan import PackingPlan, TokenizedRow


@dataclass(frozen=True)
class GenerationEvaluator:
    """Rows whose answers are decoded."""

    task: ModuleType
    spec: Any
    rows: Sequence[dict[str, Any]]
    prompts: Sequence[list[int]]
    tokenizer: Any
    max_answer_tokens: int
    announce: Callable[[str], None] = lambda told: None
    """Is told what is computed more slowly than elsewhere, and why."""

    def first(self, rows: int) -> "GenerationEvaluator":
        """Returns the same with the first rows alone."""
        return replace(self, rows=self.rows[:rows], prompts=self.prompts[:rows])

    def ask(self, model: Any, what: str) -> list[DecodedAnswer]:
        """Returns the answer to each row, with progress named `what`."""
        from train.loop.metrics_callback import show_progress

        mine = world.shard(self.prompts)
        # Weights that FSDP spreads are gathered once; dequantized ones beside them would take the memory it is for.
        spread = fsdp.is_sharded(model)
        with (
            show_progress(what, len(mine)) as advance,
            fsdp.unshard(model) if spread else dequantize.dequantize_layers(model, self.announce),
        ):
            answers = decode_answers(
                model,
                self.tokenizer,
                mine,
                self.task.grammar(self.spec),
                max_new_tokens=self.max_answer_tokens,
                on_batch=advance,
                announce=self.announce,
            )
        return world.gather_in_order(answers, len(self.prompts))

    def parsed(self, answers: Sequence[DecodedAnswer]) -> list[ParsedAnswer]:
        """Returns the answers as the task reads them; one that did not end has a problem, and counts as wrong."""
        return [
            self.task.parse(self.spec, one.text) if one.complete else ParsedAnswer(None, TRUNCATED) for one in answers
        ]

    def targets(self, parsed: Sequence[ParsedAnswer]) -> list[Any]:
        """Returns what each answer is scored against: the target of its row, or of several references the nearest."""
        return references.select_targets(self.task, self.spec, self.rows, parsed)

    def score(self, answers: Sequence[Any], untuned: Sequence[Any]) -> dict[str, Any]:
        """Returns the task's score of the answers, see `scored`; what the untuned base answered is not needed."""
        return score_with_slices(self.task, self.spec, self.rows, self.parsed(answers))


@dataclass(frozen=True)
class PreferenceEvaluator:
    """Rows of a preference task."""

    task: ModuleType
    spec: Any
    rows: Sequence[dict[str, Any]]
    pairs: Sequence[TokenizedRow]
    plan: PackingPlan
    tokenizer: Any

    def ask(self, model: Any, what: str) -> list[tuple[float, ...]]:
        """Returns the log-probabilities of the chosen and the rejected answer of each row, with progress."""
        from train.loop.metrics_callback import show_progress

        with show_progress(what, len(self.pairs)) as advance, fsdp.unshard(model):
            return log_likelihood.compute_log_likelihoods(
                model, self.pairs, self.plan, self.tokenizer.pad_token_id, on_batch=advance
            )

    def score(self, found: Sequence[Any], untuned: Sequence[Any]) -> dict[str, Any]:
        """Returns the task's score, see `scored`; the untuned base is the reference that rewards are measured from."""
        parsed = [
            ParsedAnswer(
                {
                    "chosen": one[0],
                    "rejected": one[1],
                    "reference_chosen": base[0],
                    "reference_rejected": base[1],
                    "chosen_tokens": len(row.completions[0]),
                    "rejected_tokens": len(row.completions[1]),
                }
            )
            for row, one, base in zip(self.pairs, found, untuned, strict=True)
        ]
        return score_with_slices(self.task, self.spec, self.rows, parsed)


def score_with_slices(
    task: ModuleType, spec: Any, rows: Sequence[dict[str, Any]], parsed: Sequence[ParsedAnswer]
) -> dict[str, Any]:
    """Returns the task's score, under "slices" the headline of each part of the rows that the recipe tells apart."""
    targets = references.select_targets(task, spec, rows, parsed)
    parts: dict[str, dict[str, list[int]]] = {}
    for at, row in enumerate(rows):
        for name, value in row.get("slices", {}).items():
            parts.setdefault(name, {}).setdefault(slice_name(value), []).append(at)

    def of(mine: list[int]) -> dict[str, Any]:
        score = task.score(spec, [targets[at] for at in mine], [parsed[at] for at in mine])
        return {"n": len(mine), **task.main_metrics(score)}

    slices = {name: {value: of(mine) for value, mine in sorted(values.items())} for name, values in parts.items()}
    return {**task.score(spec, targets, parsed), "slices": slices}


def make_validation_metrics(
    asked: "GenerationEvaluator | PreferenceEvaluator", untuned: Sequence[Any], model: Any
) -> Callable[[], dict[str, float]]:
    """Returns a function that scores the model as it is, for validation while it trains."""

    def now() -> dict[str, float]:
        score = asked.score(asked.ask(model, "validating"), untuned)
        return {name: float(value) for name, value in asked.task.main_metrics(score).items()}

    return now
