"""The requests to a teacher within its budget, through the response cache of the recipe.

Every answer is on disk before it counts, and every attempt before it is sent (`insource/backends/collection.py`,
`attempt_log.py`). All teachers of a recipe share one cache, `.answers/teacher.jsonl`, and its costs count against
`data.teacher.budget_usd`. A killed process therefore loses no answer, and no sequence of calls exceeds the budget.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data_prep.teacher.unlabelled_rows import Candidate
from insource.backends import api_errors, api_requests, collection, pricing, response_cache
from insource.backends.budgets import Budget
from insource.backends.client import API_MODULES
from insource.backends.collection import CollectResult
from insource.backends.pricing import TokenPrice
from insource.backends.response_cache import CachedResponse
from insource.backends.types import Backend, Request, RowRequest
from insource.config.errors import RecipeError, StageError
from insource.config.schema.compare import Baseline
from insource.config.schema.teacher import Teacher
from insource.system import progress_bar
from insource.system.console_log import log_line
from insource.tasks.task_kind import TaskKind

LOCATION = "data.teacher"


@dataclass(frozen=True)
class TeacherRequests:
    """The requests to a teacher, in the order in which they are sent."""

    endpoint: Backend
    identity: Any
    requests: Sequence[RowRequest]
    cache_path: Path
    price: TokenPrice | None
    """None for a stand-in on this machine without a price, which costs nothing."""

    @property
    def spent_usd(self) -> float:
        """Return the cost of all teachers of the recipe so far, possible charges included."""
        return sum(response.total_usd for response in response_cache.read_responses(self.cache_path))

    def list_pending(self) -> list[RowRequest]:
        """Return the requests without a cached answer."""
        return collection.list_pending_requests(self.endpoint, self.identity, self.requests, self.cache_path)


def build_requests(
    teacher: Teacher, task: TaskKind, spec: Any, candidates: Sequence[Candidate], max_answer_tokens: int, path: Path
) -> TeacherRequests:
    """Return the requests for these rows, with the cache at `path`.

    `max_answer_tokens` is the limit of an answer in tokens of the base. Raise RecipeError if the price is unknown, or
    if the model does not take the settings or the number of labels.
    """
    baseline, schema = teacher.baseline, task.output_schema(spec)
    price = pricing.lookup_price(baseline)
    if price is None and not baseline.is_loopback:
        raise RecipeError(
            f"{LOCATION}: the price of {baseline.display_name} is unknown, so budget_usd could not be kept; give it "
            "price: {input_usd_per_million: ..., output_usd_per_million: ...}",
            code="INS-A002",
        )
    if teacher.instruction:
        spec = replace(spec, instruction=teacher.instruction)

    def build_request(candidate: Candidate) -> Request:
        if baseline.uses_decision_api:
            return api_requests.make_choice_request(candidate.id, candidate.text, spec.instruction, spec.labels)
        messages = task.messages(spec, {"text": candidate.text})
        return api_requests.make_chat_request(candidate.id, messages, baseline, schema, max_answer_tokens)

    requests = [RowRequest(candidate.id, 0, build_request(candidate)) for candidate in candidates]
    endpoint = api_requests.build_endpoint(baseline, schema, LOCATION)
    if teacher.min_confidence is not None and not (baseline.uses_decision_api or endpoint.log_probabilities):
        raise RecipeError(
            f"{LOCATION}.min_confidence: {baseline.display_name} returns no probabilities with these settings; leave "
            "it out, or set api: decisions",
            code="INS-A004",
        )
    if requests:
        # Raises RecipeError if an endpoint of choices does not take so many labels.
        API_MODULES[endpoint.api_format].build_body(endpoint, requests[0].request)
    return TeacherRequests(endpoint, [baseline.provider, baseline.base_url], requests, path, price)


def check_key(baseline: Baseline) -> None:
    """Raise RecipeError if the environment has no API key."""
    if baseline.key_env and not os.environ.get(baseline.key_env):
        raise RecipeError(f"{LOCATION}: no key: {baseline.key_env} is not set", code="INS-A001")


def send_requests(teacher_requests: TeacherRequests, teacher: Teacher) -> tuple[CollectResult, TeacherRequests]:
    """Return the answers as far as the budget allows, and the requests as they were sent.

    The first request is sent alone. A parameter that the provider rejects by name is left out from then on. Raise
    StageError if the provider refuses the requests or does not answer; the answers so far are kept.
    """
    if teacher_requests.list_pending():
        check_key(teacher.baseline)
        teacher_requests = _send_first_request(teacher_requests, teacher)
    n_requests, name = len(teacher_requests.requests), teacher.baseline.display_name
    with progress_bar.show_progress("labelled", n_requests, visible=n_requests > 0) as advance:
        n_done = 0

        def on_response(_: CachedResponse) -> None:
            nonlocal n_done
            n_done += 1
            advance(n_done, name)

        collected = _collect(teacher_requests, teacher, teacher_requests.requests, on_response)
    refused = any(response.refused for response in collected.answers.values())
    if refused or not (collected.complete or collected.budget_exhausted):
        raise StageError(
            f"teacher {name}: {collected.why_incomplete}. The answers so far are kept; the same command goes on",
            code="INS-A009",
        )
    return collected, teacher_requests


def _send_first_request(teacher_requests: TeacherRequests, teacher: Teacher) -> TeacherRequests:
    """Return the requests without the parameters that the provider rejects."""
    first, name = teacher_requests.requests[0], teacher.baseline.display_name
    optional_parameters = API_MODULES[teacher_requests.endpoint.api_format].OPTIONAL_PARAMETERS
    while True:
        endpoint = teacher_requests.endpoint
        response = collection.find_last_response(
            endpoint, teacher_requests.identity, first, teacher_requests.cache_path
        )
        if response is None or not api_errors.find_rejected_parameter(response.error or "", optional_parameters):
            response = _collect(teacher_requests, teacher, [first]).answers.get((first.id, first.repeat))
        if response is None or response.final:
            return teacher_requests
        rejected = api_errors.find_rejected_parameter(response.error or "", optional_parameters)
        if rejected is None or rejected in endpoint.omitted_parameters:
            raise StageError(f"teacher {name}: its first request: {response.error}", code="INS-A001")
        log_line(f"left out  {rejected}, which {name} refuses: {response.error}")
        omitted = (*endpoint.omitted_parameters, rejected)
        teacher_requests = replace(teacher_requests, endpoint=replace(endpoint, omitted_parameters=omitted))


def _collect(
    teacher_requests: TeacherRequests,
    teacher: Teacher,
    requests: Sequence[RowRequest],
    on_response: Any = lambda response: None,
) -> CollectResult:
    budget = Budget(teacher.budget_usd, teacher_requests.spent_usd) if teacher_requests.price else None
    return collection.collect(
        teacher_requests.endpoint,
        teacher_requests.identity,
        requests,
        teacher_requests.cache_path,
        budget=budget,
        price=teacher_requests.price,
        on_response=on_response,
    )
