"""Compare the answers of a server with those of the trained model, by two separate criteria.

Same weights   adapter and merged model on the trained base: the answers of the trained weights in transformers
               (reference.jsonl) and in vLLM must be equal, except for the fraction of rows that the recipe allows.
               A different answer comes with the reference's margin: how much more probable its closest token was
               than the next best. Rows with a margin within the rounding of the data type are counted separately,
               because neither answer is wrong there
Other weights  a quantized model, or any variant on the published base, against the trained weights: the difference
               of the task's score on the same rows, with an interval

Before both, the server must read the token ids that were used in training.
"""

import asyncio
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from insource.backends.client import complete_all
from insource.backends.types import Backend, Completion, Constraint, Request, StructuredOutput
from insource.config.errors import StageError
from insource.config.metric_names import ROW_METRICS
from insource.config.schema.serving_and_cost import Parity, Serve
from insource.stats import metric_stats, paired
from insource.stats.paired import Conclusion, PairedDifference
from insource.system import atomic_files
from insource.tasks import few_shot, references
from insource.tasks.data_row import DataRow, Rows
from insource.tasks.parsed_answer import TRUNCATED, ParsedAnswer
from insource.tracking.prompt_spec import PromptSpec
from insource.tracking.reference_row import ReferenceRow, read_references
from serve.parity import reference_check
from serve.vllm import client
from serve.vllm.launch_plan import MAX_ROUNDING_FRACTION, ServedModel, has_trained_weights, rounding_tolerance
from serve.vllm.server_process import Address

ALPHA = 0.05
CONCURRENCY = 64
# Measurements that do not decide use fewer rows.
SECONDARY_ROWS = 100


@dataclass(frozen=True)
class ParityProbe:
    """Validation rows with their reference answers, and the model that they are sent to."""

    served: ServedModel
    prompt: PromptSpec
    rows: Rows
    training_references: Sequence[ReferenceRow]
    """The answers of the trained weights."""
    same_weights: bool
    """True if the served variant has the trained weights and must give the same answers."""
    rounding: float = 0.0
    """See `launch_plan.rounding_tolerance`."""
    examples: Sequence[Rows] = ()
    """The examples in the prompt of each row; empty if training had none."""

    def head(self, n_rows: int) -> "ParityProbe":
        """Return a probe of the first `n_rows` rows."""
        return replace(
            self,
            rows=self.rows[:n_rows],
            training_references=self.training_references[:n_rows],
            examples=self.examples[:n_rows],
        )

    @property
    def metric(self) -> str:
        """Metric that rows are scored by: the task's first one that is a mean over rows."""
        return ROW_METRICS[self.prompt.kind]

    def parse(self, text: str, complete: bool = True) -> ParsedAnswer:
        """Parse an answer by the task's rules. An incomplete answer is invalid."""
        module, spec = self.prompt.load_task()
        return module.parse(spec, text) if complete else ParsedAnswer(None, TRUNCATED)

    def score(self, row: DataRow, parsed: ParsedAnswer) -> float:
        """Return the score of one answer. The task's metric is the mean of these scores."""
        module, spec = self.prompt.load_task()
        return float(
            module.score(spec, references.select_targets(module, spec, [row], [parsed]), [parsed])[self.metric]
        )


@dataclass(frozen=True)
class Mismatch:
    """A row with different answers of the same weights in transformers and in vLLM."""

    id: str
    reference: str
    answer: str
    margin: float | None
    """Margin of the reference answer, natural logarithm; None if it never had a choice between tokens."""


@dataclass(frozen=True)
class SameWeightsAgreement:
    """Agreement of the same weights in transformers and in vLLM."""

    n: int
    agreement: float
    """Fraction of rows without a mismatch."""
    flips: Sequence[Mismatch]
    close: Sequence[Mismatch] = ()
    """Rows that differ and whose reference margin is within rounding. Empty if there are too many to be rounding."""


@dataclass(frozen=True)
class ScoreDifference:
    """Score of the served variant minus that of the trained weights, on the same rows."""

    metric: str
    value: float
    trained: float
    difference: PairedDifference

    def judge(self, allowed_drop: float) -> Conclusion:
        """Classify the interval of the difference, with the allowed drop as margin."""
        return paired.classify_difference(self.difference, allowed_drop)


@dataclass(frozen=True)
class ParityResult:
    """Parity of one served model."""

    variant: str
    n: int
    prompt_ids_equal: float
    first_prompt_mismatch: str | None
    same_weights: SameWeightsAgreement | None
    """None if the variant does not have the trained weights."""
    score_difference: ScoreDifference
    validity: Mapping[StructuredOutput, tuple[float, int]]
    """Fraction of answers that the task can parse, and their number, by the kind of constraint."""
    first_difference: str | None = None
    """The first difference of the first different prompt, as text of both sides."""

    def to_json(self, parity: Parity) -> dict[str, Any]:
        """Return the entry of parity.json."""
        keys = {
            "variant": "which",
            "first_prompt_mismatch": "first_other_prompt",
            "same_weights": "same",
            "score_difference": "other",
            "validity": "valid",
        }
        payload = {keys.get(name, name): value for name, value in asdict(self).items()}
        return payload | {"judged": self.score_difference.judge(parity.score_drop)}

    def failures(self, parity: Parity) -> list[str]:
        """Return the failed limits of the recipe; an empty list if the model may be served."""
        return self.mismatches(parity) + self.score_losses(parity)

    def mismatches(self, parity: Parity) -> list[str]:
        """Return why this is not the trained model: other prompt ids, or other answers of the same weights.

        With a mismatch its answers are no evidence about the trained model.
        """
        problems = []
        if self.prompt_ids_equal < 1:
            problems.append(
                f"the server reads other token ids than were trained on, in {1 - self.prompt_ids_equal:.1%} of "
                f"{self.n} prompts, first in row {self.first_prompt_mismatch}: its chat template or its tokenizer "
                "differs" + (f", {self.first_difference}" if self.first_difference else "")
            )
        same_weights = self.same_weights
        if same_weights and same_weights.agreement < parity.same_weights:
            problems.append(
                f"vLLM answers {same_weights.agreement:.1%} of {same_weights.n} rows as transformers does with the "
                "same weights"
                + (f" ({len(same_weights.close)} more differ within rounding)" if same_weights.close else "")
                + f", and serve.parity.same_weights requires {parity.same_weights:.1%}; "
                f"{_format_first_mismatch(same_weights.flips)}"
            )
        return problems

    def score_losses(self, parity: Parity) -> list[str]:
        """Return a failure if the score of other weights drops by more than the recipe allows."""
        score = self.score_difference
        if self.same_weights is None and score.judge(parity.score_drop) == "worse":
            return [
                f"{score.metric} is {-score.difference.delta:.1%} below that of the trained weights "
                f"({score.value:.1%} against {score.trained:.1%} of {score.difference.n} rows, at least "
                f"{-score.difference.high:.1%} with 95% confidence), and serve.parity.score_drop allows "
                f"{parity.score_drop:.1%}"
            ]
        return []


def load_probe(served: ServedModel, n_rows: int, serve: Serve) -> ParityProbe:
    """Return the rows to send to a served model, with their reference answers.

    Raise StageError if reference answers are missing.
    """
    served.run.check_references(served.prompt)
    reference_answers = _read_references(served.run.references_path, n_rows)
    (reference_rows,) = _read_rows(served, "validation", [[reference.id for reference in reference_answers]])
    example_ids = [reference.examples for reference in reference_answers]
    return ParityProbe(
        served=served,
        prompt=served.prompt,
        rows=reference_rows,
        training_references=reference_answers,
        same_weights=has_trained_weights(served, serve),
        examples=_read_rows(served, "train", example_ids) if any(example_ids) else (),
        rounding=rounding_tolerance(served, serve),
    )


def _read_rows(served: ServedModel, split: str, ids: Sequence[Sequence[str]]) -> list[Rows]:
    """Return the rows of a split by their ids, a list for each list of ids. Raise StageError if one is missing."""
    wanted = set(itertools.chain.from_iterable(ids))
    lines = atomic_files.read_jsonl(served.run.folder / "data" / f"{split}.jsonl")
    by_id: dict[str, DataRow] = {row["id"]: row for row in lines if row["id"] in wanted}
    if missing := sorted(wanted - by_id.keys()):
        raise StageError(f"{split}.jsonl has no row {missing[0]}, which reference.jsonl has", code="INS-E011")
    return [[by_id[row_id] for row_id in row_ids] for row_ids in ids]


def list_constraint_modes(probe: ParityProbe, serve: Serve) -> list[StructuredOutput]:
    """Return the possible output constraints, first the deciding one: the constraint that the recipe serves with."""
    modes: list[StructuredOutput] = ["none"]
    if (probe.prompt.output_schema or {}).get("type") == "object":
        modes.insert(0, "json_schema")
    if probe.prompt.grammar:
        modes.insert(0 if serve.structured_output else 1, "grammar")
    return modes


def run_parity(
    probe: ParityProbe,
    address: Address,
    api_key: str | None,
    modes: Sequence[StructuredOutput],
    cached: Sequence[Completion] | None = None,
) -> ParityResult:
    """Measure the parity of a server.

    `modes` are the output constraints, the deciding one first. `cached` are the server's answers under that constraint,
    if they exist already. Raise StageError if a request has no answer.
    """
    n_mismatches, first_mismatch = asyncio.run(_compare_prompts(probe, address, api_key))
    primary_replies = (
        cached if cached is not None else query_rows(probe, build_backend(probe, address, api_key, modes[0]))
    )
    validity = {modes[0]: _compute_validity(probe, primary_replies)}
    for mode in modes[1:]:
        subset = probe.head(SECONDARY_ROWS)
        validity[mode] = _compute_validity(subset, query_rows(subset, build_backend(subset, address, api_key, mode)))
    return ParityResult(
        variant=probe.served.variant,
        n=len(probe.rows),
        prompt_ids_equal=1 - n_mismatches / len(probe.rows),
        first_prompt_mismatch=first_mismatch[0] if first_mismatch else None,
        first_difference=first_mismatch[1] if first_mismatch else None,
        same_weights=_compare_answers(probe, primary_replies) if probe.same_weights else None,
        score_difference=_compute_score_difference(probe, primary_replies),
        validity=validity,
    )


async def _compare_prompts(
    probe: ParityProbe, address: Address, api_key: str | None
) -> tuple[int, tuple[str, str] | None]:
    """Return how many prompts the server reads otherwise than training did; row id and difference of the first."""
    served = probe.served
    async with client.open_session(address, api_key) as session:
        prompt_ids = await client.fetch_prompt_ids(session, served.name, build_conversations(probe))
        mismatches = [
            (reference, actual)
            for reference, actual in zip(probe.training_references, prompt_ids, strict=True)
            if reference.prompt_ids != actual
        ]
        if not mismatches:
            return 0, None
        first, actual = mismatches[0]
        difference = await reference_check.describe_token_difference(
            session, served, served.name, first.prompt_ids, actual
        )
    return len(mismatches), (first.id, difference)


def build_backend(
    probe: ParityProbe,
    address: Address,
    api_key: str | None,
    structured: StructuredOutput,
    concurrency: int = CONCURRENCY,
) -> Backend:
    """Return the backend for requests to the server."""
    return Backend(
        api_format="openai",
        model=probe.served.name,
        base_url=client.base_url(address),
        api_key=api_key or "none",
        structured=structured,
        log_probabilities=True,
        timeout_seconds=600,
        concurrency=concurrency,
    )


def query_rows(probe: ParityProbe, backend: Backend) -> list[Completion]:
    """Return the server's answer to each row. Raise StageError if a request failed."""
    results = complete_all(backend, build_requests(probe))
    if failed := [result for result in results if result.completion is None]:
        raise StageError(
            f"{len(failed)} of {len(results)} requests were not answered; the first, {failed[0].id}: {failed[0].error}",
            code="INS-E010",
        )
    return [result.completion for result in results if result.completion]


def build_requests(probe: ParityProbe) -> list[Request]:
    """Return the request of each row."""
    constraint = Constraint(probe.prompt.grammar, probe.prompt.output_schema)
    return [
        Request(row["id"], messages, probe.prompt.max_answer_tokens, constraint)
        for row, messages in zip(probe.rows, build_conversations(probe), strict=True)
    ]


def build_conversations(probe: ParityProbe) -> list[list[dict[str, str]]]:
    """Return the messages of each row, without the answer."""
    module, spec = probe.prompt.load_task()
    return few_shot.build_conversations(module, spec, probe.rows, probe.examples)


def _read_references(path: Path, n_rows: int) -> list[ReferenceRow]:
    if not path.is_file():
        raise StageError(f"there is no {path}, which the parity check needs; train again (FRESH=1)", code="INS-E011")
    return list(itertools.islice(read_references(path), n_rows))


def _compare_answers(probe: ParityProbe, answers: Sequence[Completion]) -> SameWeightsAgreement:
    differing = [
        Mismatch(expected.id, expected.answer, answer.output, expected.margin)
        for expected, answer in zip(probe.training_references, answers, strict=True)
        if expected.answer != answer.output
    ]
    close = [mismatch for mismatch in differing if mismatch.margin is not None and mismatch.margin < probe.rounding]
    # The margin is the smallest of an answer's tokens, and nearly every long answer has a small one.
    close = close if len(close) <= MAX_ROUNDING_FRACTION * len(answers) else []
    mismatches = [mismatch for mismatch in differing if mismatch not in close]
    return SameWeightsAgreement(len(answers), 1 - len(mismatches) / len(answers), mismatches, close)


def _parse_answers(probe: ParityProbe, answers: Sequence[Completion]) -> list[ParsedAnswer]:
    return [probe.parse(answer.output, answer.finish_reason == "stop") for answer in answers]


def _compute_validity(probe: ParityProbe, answers: Sequence[Completion]) -> tuple[float, int]:
    parsed = _parse_answers(probe, answers)
    return sum(answer.problem is None for answer in parsed) / len(parsed), len(parsed)


def _compute_score_difference(probe: ParityProbe, answers: Sequence[Completion]) -> ScoreDifference:
    served_scores = [
        probe.score(row, parsed) for row, parsed in zip(probe.rows, _parse_answers(probe, answers), strict=True)
    ]
    trained_scores = [
        probe.score(row, probe.parse(reference.answer))
        for row, reference in zip(probe.rows, probe.training_references, strict=True)
    ]
    served, trained = metric_stats.mean_metric(served_scores), metric_stats.mean_metric(trained_scores)
    # Few rows change, often all in one direction, so no interval that assumes a distribution is valid.
    difference = paired.compute_paired_difference(served, trained, alpha=ALPHA, distribution_free=True)
    return ScoreDifference(probe.metric, served.compute_value(), trained.compute_value(), difference)


def _format_first_mismatch(mismatches: Sequence[Mismatch]) -> str:
    mismatch = mismatches[0]
    return f"first row {mismatch.id}: {mismatch.answer!r} where transformers answers {mismatch.reference!r}"
