"""JSON Schemas of the requests and responses of the gateway, for the description at GET /openapi.json.

They describe the gateway's own paths completely, and chats only as far as the gateway reads them: vLLM accepts more
parameters and returns more fields. The limits are the constants that the paths themselves use.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from deploy.answers.task import Task
from deploy.gateway.paths import decisions, feedback, tasks_path
from deploy.gateway.paths.label_questions import CHOICES_RANGE, MAX_QUESTIONS
from insource.config.schema.serving_and_cost import Limits

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
NUMBER_OR_NULL: Schema = {"type": ["number", "null"]}
PROBABILITY: Schema = {"type": "number", "minimum": 0, "maximum": 1}
TOKENS: Schema = {"type": "integer", "minimum": 0}
PRIVATE: Schema = {
    "type": ["boolean", "null"],
    "description": "true: the input is never sent to an API model and never recorded.",
}
MESSAGES: Schema = {
    "type": "array",
    "minItems": 1,
    "items": {
        "type": "object",
        "required": ["role", "content"],
        "properties": {
            "role": {"type": "string", "minLength": 1},
            "content": {
                "anyOf": [
                    TEXT,
                    {
                        "type": "array",
                        "items": {
                            "type": "object",
                            "required": ["type", "text"],
                            "properties": {"type": {"const": "text"}, "text": TEXT},
                        },
                    },
                ]
            },
        },
    },
}


def describe_object(
    properties: Mapping[str, Schema], required: Sequence[str] | None = None, closed: bool = False
) -> Schema:
    """Return the schema of an object. By default all properties are required and others may follow.

    `closed` forbids other properties.
    """
    schema: Schema = {
        "type": "object",
        "required": list(properties if required is None else required),
        "properties": dict(properties),
    }
    return schema | {"additionalProperties": False} if closed else schema


# RequestError.json (deploy/answers/request_errors.py).
ERROR_DETAIL = describe_object({"type": TEXT, "message": TEXT, "code": {"type": "integer"}})
# vLLM's own errors, which are passed on, have no "type" beside "error".
ERROR = describe_object({"type": {"const": "error"}, "error": ERROR_DETAIL}, ["error"])
MODELS = describe_object(
    {
        "object": {"const": "list"},
        "data": {
            "type": "array",
            "items": describe_object({"id": TEXT, "object": {"const": "model"}, "owned_by": TEXT}),
        },
    }
)


def describe_chat(models: Sequence[str], limits: Limits, with_max_tokens: bool) -> Schema:
    """Return the schema of a chat request. Anthropic's format requires max_tokens (`with_max_tokens`)."""
    properties = {"model": _describe_model(models), "messages": MESSAGES, "private": PRIVATE}
    parameters = _describe_parameters(limits) | {"max_completion_tokens": _describe_max_tokens(limits)}
    return describe_object(properties | parameters, ["model", "messages", *(["max_tokens"] if with_max_tokens else [])])


def describe_completion_request(models: Sequence[str], limits: Limits) -> Schema:
    """Return the schema of a request to /v1/completions."""
    token_ids = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
    texts = {"type": "array", "items": TEXT, "minItems": 1, "maxItems": limits.sequences}
    prompt = {"anyOf": [TEXT, token_ids, texts]}
    return describe_object(
        {"model": _describe_model(models), "prompt": prompt, **_describe_parameters(limits)}, ["model", "prompt"]
    )


def _describe_model(models: Sequence[str]) -> Schema:
    return {"type": "string", **({"enum": list(models)} if models else {})}


def _describe_parameters(limits: Limits) -> dict[str, Schema]:
    n_answers = {"type": ["integer", "null"], "minimum": 1, "maximum": limits.sequences}
    stream = {"type": ["boolean", "null"], "description": "true: the response is a stream of events."}
    return {"max_tokens": _describe_max_tokens(limits), "n": n_answers, "stream": stream}


def _describe_max_tokens(limits: Limits) -> Schema:
    maximum = {"maximum": limits.answer_tokens} if limits.answer_tokens else {}
    return {"type": ["integer", "null"], "minimum": 1, **maximum}


def describe_choices(choice: Schema) -> Schema:
    """Return the schema of a response in OpenAI's format with these choices."""
    insource = {"type": "object", "description": "The outcome of a task input that the gateway answered itself."}
    return describe_object(
        {"model": TEXT, "choices": {"type": "array", "items": choice}, "insource": insource}, ["model", "choices"]
    )


CHAT_COMPLETION = describe_choices(
    describe_object({"message": describe_object({"role": TEXT, "content": {"type": ["string", "null"]}})})
)
COMPLETION = describe_choices(describe_object({"text": TEXT}))
MESSAGE = describe_object(
    {
        "type": {"const": "message"},
        "role": {"const": "assistant"},
        "model": TEXT,
        "content": {"type": "array", "items": {"type": "object"}},
        "usage": describe_object({"input_tokens": TOKENS, "output_tokens": TOKENS}),
    }
)


def describe_input(task: Task) -> Schema:
    """Return the schema of an input of a task: a text, an object of its text columns, or a list of messages."""
    columns = task.recipe.data.columns
    texts = describe_object(dict.fromkeys(columns.texts, TEXT), closed=True)
    conversation = [describe_object({columns.messages: MESSAGES})] if columns.messages else []
    return {"anyOf": [TEXT, texts, *conversation, MESSAGES]}


def describe_answer(task: Task) -> Schema:
    """Return the schema of a valid answer of a task: the schema that its answers are checked against, or a text."""
    return dict(task.dataset.prompt.output_schema or TEXT)


def describe_task_request(task: Task) -> Schema:
    """Return the schema of a request to /v1/tasks/<recipe>."""
    task_input = describe_input(task)
    several = {"type": "array", "items": task_input, "minItems": 1, "maxItems": tasks_path.MAX_INPUTS}
    schema = describe_object({"input": task_input, "inputs": several, "private": PRIVATE}, [], closed=True)
    return schema | {"oneOf": [{"required": ["input"]}, {"required": ["inputs"]}]}


def describe_task_response(task: Task) -> Schema:
    """Return the schema of a response of /v1/tasks/<recipe>: one outcome, or a list of outcomes and errors."""
    head = {"task": {"const": task.name}, "version": TEXT}
    outcome = {  # Outcome.json (deploy/answers/outcome.py)
        "id": {"type": "string", "description": "The answer id for POST /v1/feedback."},
        "answer": describe_answer(task),
        "confidence": NUMBER_OR_NULL,
        "local_confidence": NUMBER_OR_NULL,
        "answered_by": TEXT,
        "reason": TEXT,
        "degraded": {"type": "boolean"},
        "redacted": {"type": "array", "items": TEXT},
    }
    items = {"anyOf": [describe_object(outcome), describe_object({"error": ERROR_DETAIL})]}
    batch = {"type": "array", "items": items, "maxItems": tasks_path.MAX_INPUTS}
    return {"oneOf": [describe_object(head | outcome), describe_object(head | {"answers": batch})]}


def describe_decision_request(tasks: Sequence[Task]) -> Schema:
    """Return the schema of a request to /v1/decisions: one alternative for each classification task."""
    return _describe_alternatives([_describe_task_decision(task) for task in tasks], "input")


def describe_systemone_request(tasks: Sequence[Task]) -> Schema:
    """Return the schema of a request to /v1/systemone: one alternative for each classification task."""
    return _describe_alternatives([_describe_task_systemone(task) for task in tasks], "state")


def _describe_alternatives(alternatives: Sequence[Schema], input_key: str) -> Schema:
    """Return the schema of a request about labels; without a task it names only the keys."""
    keys = ("model", input_key, "questions")
    return {"oneOf": list(alternatives)} if alternatives else describe_object({key: {} for key in keys})


def _describe_task_decision(task: Task) -> Schema:
    labels = list(task.labels or ())
    value = describe_object({"value": {"enum": labels}})
    minimum, maximum = CHOICES_RANGE
    name: Schema = {"type": ["string", "null"]}
    choices = {"type": "array", "items": value, "minItems": minimum, "maxItems": maximum, "uniqueItems": True}
    choice = {"type": {"const": "choice"}, "name": name, "instructions": TEXT, "choices": choices}
    predicate = {"type": {"const": "predicate"}, "name": name, "instructions": {"enum": labels}}
    questions = {
        "type": "array",
        "minItems": 1,
        "maxItems": MAX_QUESTIONS,
        "items": {
            "anyOf": [
                describe_object(choice, ["type", "choices"]),
                describe_object(predicate, ["type", "instructions"]),
            ]
        },
    }
    model = {"const": task.name}
    properties: dict[str, Schema] = {key: {} for key in decisions.KEYS}
    properties |= {"model": model, "input": describe_input(task), "questions": questions, "private": PRIVATE}
    return describe_object(properties, ["model", "input", "questions"], closed=True)


def _describe_task_systemone(task: Task) -> Schema:
    labels = list(task.labels or ())
    minimum, maximum = CHOICES_RANGE
    criteria = {
        "type": "object",
        "properties": {label: {} for label in labels},
        "additionalProperties": False,
        "minProperties": minimum,
        "maxProperties": maximum,
    }
    choice = describe_object({"type": {"const": "choice"}, "criteria": criteria})
    noul = describe_object({"type": {"const": "noul"}, "instructions": {"enum": labels}})
    questions = {
        "type": "object",
        "minProperties": 1,
        "maxProperties": MAX_QUESTIONS,
        "additionalProperties": {"anyOf": [choice, noul]},
    }
    properties = {"model": {"const": task.name}, "state": describe_input(task), "questions": questions}
    return describe_object(properties | {"private": PRIVATE}, list(properties), closed=True)


def describe_systemone_response() -> Schema:
    """Return the schema of a response of /v1/systemone."""
    probabilities = {"type": "object", "additionalProperties": PROBABILITY}
    choice = {"type": {"const": "choice"}, "choice": TEXT, "confidence": PROBABILITY, "probabilities": probabilities}
    noul = {"type": {"const": "noul"}, "noul": PROBABILITY}
    answers = {
        "type": "object",
        "minProperties": 1,
        "additionalProperties": {"oneOf": [describe_object(choice), describe_object(noul)]},
    }
    usage = describe_object({"input_tokens": TOKENS, "output_tokens": TOKENS})
    return describe_object({"model": TEXT, "answers": answers, "usage": usage})


def describe_decision_response() -> Schema:
    """Return the schema of a response of /v1/decisions."""
    name: Schema = {"type": ["string", "null"]}
    option = describe_object({"value": TEXT, "probability": PROBABILITY})
    choice = {
        "type": {"const": "choice"},
        "name": name,
        "choice": TEXT,
        "confidence": PROBABILITY,
        "probabilities": {"type": "array", "items": option},
    }
    predicate = {"type": {"const": "predicate"}, "name": name, "probability": PROBABILITY}
    answers = {"type": "array", "items": {"oneOf": [describe_object(choice), describe_object(predicate)]}}
    usage = describe_object({"input_tokens": TOKENS, "output_tokens": TOKENS, "total_tokens": TOKENS})
    return describe_object({"model": TEXT, "answers": answers, "usage": usage})


def describe_feedback_request(tasks: Sequence[Task]) -> Schema:
    """Return the schema of a request to /v1/feedback. An answer may also be sent as a text that contains its JSON."""
    answers = [describe_answer(task) for task in tasks]
    item = describe_object({"id": TEXT, "answer": {"anyOf": [*answers, TEXT]}}, required=feedback.KEYS, closed=True)
    items = {"type": "array", "items": item, "minItems": 1, "maxItems": feedback.MAX_ITEMS}
    return {"oneOf": [item, describe_object({"feedback": items}, closed=True)]}


def describe_feedback_response() -> Schema:
    """Return the schema of a response of /v1/feedback: for one item, or for a list of them."""
    right, recorded = {"type": "boolean"}, {"type": "integer", "minimum": 0}
    item = {"oneOf": [describe_object({"right": right}), describe_object({"error": ERROR_DETAIL})]}
    results = {"type": "array", "items": item}
    return {
        "oneOf": [
            describe_object({"recorded": recorded, "right": right}),
            describe_object({"recorded": recorded, "results": results}),
        ]
    }
