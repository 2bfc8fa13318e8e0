"""Is what a server answers what was trained? Two questions, never mixed.

Same weights   adapter and merged model on the base that was trained on: the answers of the trained weights in
               transformers (reference.jsonl) and in vLLM must be equal, but for a share of rows that the recipe
               allows; a row that differs comes with its margin: how much more probable the reference's closest token
               was than the next best. Rows whose margin is within the rounding of the type that is computed in are
               counted apart: neither answer is the wrong one there
Other weights  a quantized model, or anything on the published base, against the weights that were trained: judged by
               the task's score on the same rows, with an interval of the difference

And before both: the server must read the token ids that were trained on.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from insource.backends.client import complete_all
from insource.backends.types import Backend, Completion, Constraint, Request, StructuredOutput
from insource.config.errors import StageError
from insource.config.metric_names import ROW_METRICS
from insource.config.schema.serving_and_cost import Parity, Serve
from insource.stats import metric_stats, paired
from insource.stats.paired import Conclusion, PairedDifference
from insource.system import atomic_files
from insource.tasks import load_task_spec, references
from insource.tasks.parsed_answer import TRUNCATED, ParsedAnswer
from serve.parity import reference_check
from serve.vllm import client
from serve.vllm.launch_plan import MAX_ROUNDING_FRACTION, ServedModel, has_trained_weights, rounding_tolerance
from serve.vllm.server_process import Address

ALPHA = 0.05
CONCURRENCY = 64
# What does not decide is asked of fewer rows.
SECONDARY_ROWS = 100


@dataclass(frozen=True)
class ParityProbe:
    """Validation rows whose reference answers are known, and how they are asked."""

    served: ServedModel
    prompt: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]
    trained: Sequence[Mapping[str, Any]]
    """The lines of reference.jsonl: what the weights that were trained answer."""
    same_weights: bool
    """Whether what is served has those weights, so that the same answers are due."""
    rounding: float = 0.0
    """See `plan.rounding`."""

    def first(self, n_rows: int) -> "ParityProbe":
        """Returns the same with the first rows alone."""
        return replace(self, rows=self.rows[:n_rows], trained=self.trained[:n_rows])

    @property
    def metric(self) -> str:
        """Returns the metric that rows are judged by: the task's first that is a mean over rows."""
        return ROW_METRICS[self.prompt["task"]["kind"]]

    def parsed(self, text: str, complete: bool = True) -> ParsedAnswer:
        """Returns an answer as the task reads it."""
        module, spec = load_task_spec(self.prompt["task"])
        return module.parse(spec, text) if complete else ParsedAnswer(None, TRUNCATED)

    def score(self, row: Mapping[str, Any], parsed: ParsedAnswer) -> float:
        """Returns the score of one answer; the task's metric is the mean of these."""
        module, spec = load_task_spec(self.prompt["task"])
        return float(
            module.score(spec, references.select_targets(module, spec, [row], [parsed]), [parsed])[self.metric]
        )


@dataclass(frozen=True)
class Mismatch:
    """A row that the same weights answer otherwise in vLLM."""

    id: str
    reference: str
    answer: str
    margin: float | None
    """Of the reference, natural logarithm; None where it never had a choice."""


@dataclass(frozen=True)
class SameWeightsAgreement:
    """The same weights in transformers and in vLLM."""

    n: int
    agreement: float
    """Share of rows without a flip."""
    flips: Sequence[Mismatch]
    close: Sequence[Mismatch] = ()
    """Rows that differ where the reference's margin is within rounding; none where they are too many to be that."""


@dataclass(frozen=True)
class ScoreDifference:
    """The score of what is served minus that of the weights that were trained, on the same rows."""

    metric: str
    value: float
    trained: float
    difference: PairedDifference

    def judged(self, allowed_drop: float) -> Conclusion:
        """Returns what the interval of the difference says, with the allowed drop as margin."""
        return paired.classify_difference(self.difference, allowed_drop)


@dataclass(frozen=True)
class ParityResult:
    """What parity found of one served model."""

    which: str
    n: int
    prompt_ids_equal: float
    first_other_prompt: str | None
    same: SameWeightsAgreement | None
    """None for other weights than those that were trained."""
    other: ScoreDifference
    valid: Mapping[StructuredOutput, tuple[float, int]]
    """Share of answers that the task can read, and of how many, by how they were constrained."""
    first_difference: str | None = None
    """Where the first other prompt differs, as text on both sides."""

    def failures(self, parity: Parity) -> list[str]:
        """Returns what is below the recipe's floors: nothing where this may be served."""
        return self.mismatches(parity) + self.losses(parity)

    def mismatches(self, parity: Parity) -> list[str]:
        """Returns why this is something else than was trained: other prompt ids, or the same weights answering
        otherwise. Nothing can be said of the trained model by its answers then."""
        problems = []
        if self.prompt_ids_equal < 1:
            problems.append(
                f"the server reads other token ids than were trained on, in {1 - self.prompt_ids_equal:.1%} of "
                f"{self.n} prompts, first in row {self.first_other_prompt}: its chat template or its tokenizer differs"
                + (f", {self.first_difference}" if self.first_difference else "")
            )
        if self.same and self.same.agreement < parity.same_weights:
            problems.append(
                f"vLLM answers {self.same.agreement:.1%} of {self.same.n} rows as transformers does with the same "
                f"weights"
                + (f" ({len(self.same.close)} more differ within rounding)" if self.same.close else "")
                + f", and serve.parity.same_weights asks for {parity.same_weights:.1%}; "
                f"{_format_first_mismatch(self.same.flips)}"
            )
        return problems

    def losses(self, parity: Parity) -> list[str]:
        """Returns what the score of other weights loses beyond the recipe's floor."""
        if self.same is None and self.other.judged(parity.score_drop) == "worse":
            return [
                f"{self.other.metric} is {-self.other.difference.delta:.1%} below that of the trained weights "
                f"({self.other.value:.1%} against {self.other.trained:.1%} of {self.other.difference.n} rows, at least "
                f"{-self.other.difference.high:.1%} with 95% confidence), and serve.parity.score_drop allows "
                f"{parity.score_drop:.1%}"
            ]
        return []


def load_probe(served: ServedModel, n_rows: int, serve: Serve) -> ParityProbe:
    """Returns the rows that a served model is asked. Raises StageError where reference answers are missing."""
    served.run.check_references(served.prompt)
    reference_answers = _read_references(served.run.references, n_rows)
    by_id = {row["id"]: row for row in atomic_files.read_jsonl(served.run.folder / "data" / "validation.jsonl")}
    if missing := [reference["id"] for reference in reference_answers if reference["id"] not in by_id]:
        raise StageError(f"validation.jsonl has no row {missing[0]}, which reference.jsonl answers")
    reference_rows = [by_id[reference["id"]] for reference in reference_answers]
    return ParityProbe(
        served,
        served.prompt,
        reference_rows,
        reference_answers,
        has_trained_weights(served, serve),
        rounding_tolerance(served, serve),
    )


def constraint_modes(probe: ParityProbe, serve: Serve) -> list[StructuredOutput]:
    """Returns how answers may be constrained, the way that decides first: as the recipe serves the task."""
    modes: list[StructuredOutput] = ["none"]
    if (probe.prompt["output_schema"] or {}).get("type") == "object":
        modes.insert(0, "json_schema")
    if probe.prompt["grammar"]:
        modes.insert(0 if serve.structured_output else 1, "grammar")
    return modes


def run_parity(
    probe: ParityProbe,
    address: Address,
    api_key: str | None,
    modes: Sequence[StructuredOutput],
    cached: Sequence[Completion] | None = None,
) -> ParityResult:
    """Returns what parity found of a server. `modes` are how answers are constrained, the way that decides first;
    `cached` are its answers to the rows by that way, where it has given them already.

    Raises StageError where a request was not answered.
    """
    prompt_ids = asyncio.run(client.fetch_prompt_ids(address, api_key, probe.served.name, build_conversations(probe)))
    mismatches = [
        (reference["id"], reference["prompt_ids"], actual)
        for reference, actual in zip(probe.trained, prompt_ids, strict=True)
        if reference["prompt_ids"] != actual
    ]
    primary_replies = (
        cached if cached is not None else query_rows(probe, build_backend(probe, address, api_key, modes[0]))
    )
    validity = {modes[0]: _compute_validity(probe, primary_replies)}
    for mode in modes[1:]:
        subset = probe.first(SECONDARY_ROWS)
        validity[mode] = _compute_validity(subset, query_rows(subset, build_backend(subset, address, api_key, mode)))
    return ParityResult(
        which=probe.served.which,
        n=len(prompt_ids),
        prompt_ids_equal=1 - len(mismatches) / len(prompt_ids),
        first_other_prompt=mismatches[0][0] if mismatches else None,
        first_difference=_describe_prompt_mismatch(probe, address, api_key, *mismatches[0][1:]) if mismatches else None,
        same=_compare_answers(probe, primary_replies) if probe.same_weights else None,
        other=_compute_score_difference(probe, primary_replies),
        valid=validity,
    )


def build_backend(
    probe: ParityProbe,
    address: Address,
    api_key: str | None,
    structured: StructuredOutput,
    concurrency: int = CONCURRENCY,
) -> Backend:
    """Returns the server as one asks it."""
    return Backend(
        wire="openai",
        model=probe.served.name,
        base_url=client.base_url(address),
        api_key=api_key or "none",
        structured=structured,
        log_probabilities=True,
        timeout_seconds=600,
        concurrency=concurrency,
    )


def query_rows(probe: ParityProbe, backend: Backend) -> list[Completion]:
    """Returns the server's answer to each row. Raises StageError where one was not answered."""
    results = complete_all(backend, build_requests(probe))
    if failed := [result for result in results if result.received is None]:
        raise StageError(
            f"{len(failed)} of {len(results)} requests were not answered; the first, {failed[0].id}: {failed[0].error}"
        )
    return [result.received for result in results if result.received]


def build_requests(probe: ParityProbe) -> list[Request]:
    """Returns the request for each row."""
    constraint = Constraint(probe.prompt["grammar"], probe.prompt["output_schema"])
    return [
        Request(row["id"], messages, probe.prompt["max_answer_tokens"], constraint)
        for row, messages in zip(probe.rows, build_conversations(probe), strict=True)
    ]


def build_conversations(probe: ParityProbe) -> list[list[dict[str, str]]]:
    """Returns the messages of each row, up to the answer."""
    module, spec = load_task_spec(probe.prompt["task"])
    return [module.messages(spec, row["input"]) for row in probe.rows]


def _read_references(path: Any, n_rows: int) -> list[dict[str, Any]]:
    if not path.is_file():
        raise StageError(f"there is no {path}, to which a server is held; train again (FRESH=1)")
    return list(atomic_files.read_jsonl(path))[:n_rows]


def _compare_answers(probe: ParityProbe, answers: Sequence[Completion]) -> SameWeightsAgreement:
    differing = [
        Mismatch(expected["id"], expected["answer"], answer.output, expected["margin"])
        for expected, answer in zip(probe.trained, answers, strict=True)
        if expected["answer"] != answer.output
    ]
    close = [mismatch for mismatch in differing if mismatch.margin is not None and mismatch.margin < probe.rounding]
    # The margin is the smallest of an answer's tokens, and nearly every long answer has a small one.
    close = close if len(close) <= MAX_ROUNDING_FRACTION * len(answers) else []
    mismatches = [mismatch for mismatch in differing if mismatch not in close]
    return SameWeightsAgreement(len(answers), 1 - len(mismatches) / len(answers), mismatches, close)


def _parse_answers(probe: ParityProbe, answers: Sequence[Completion]) -> list[ParsedAnswer]:
    return [probe.parsed(answer.output, answer.finish_reason == "stop") for answer in answers]


def _compute_validity(probe: ParityProbe, answers: Sequence[Completion]) -> tuple[float, int]:
    parsed = _parse_answers(probe, answers)
    return sum(answer.problem is None for answer in parsed) / len(parsed), len(parsed)


def _compute_score_difference(probe: ParityProbe, answers: Sequence[Completion]) -> ScoreDifference:
    served_scores = [
        probe.score(row, parsed) for row, parsed in zip(probe.rows, _parse_answers(probe, answers), strict=True)
    ]
    trained_scores = [
        probe.score(row, probe.parsed(reference["answer"]))
        for row, reference in zip(probe.rows, probe.trained, strict=True)
    ]
    served, trained = metric_stats.mean_metric(served_scores), metric_stats.mean_metric(trained_scores)
    # Few rows change, often all to one side: no interval that assumes a distribution holds for them.
    difference = paired.compute_paired_difference(served, trained, alpha=ALPHA, distribution_free=True)
    return ScoreDifference(probe.metric, served.figure(), trained.figure(), difference)


def _describe_prompt_mismatch(
    probe: ParityProbe, address: Address, api_key: str | None, expected: list[int], actual: list[int]
) -> str | None:
    return reference_check.describe_token_difference(
        probe.served, probe.served.name, address, api_key, expected, actual
    )


def _format_first_mismatch(mismatches: Sequence[Mismatch]) -> str:
    mismatch = mismatches[0]
    return f"first row {mismatch.id}: {mismatch.answer!r} where transformers answers {mismatch.reference!r}"
