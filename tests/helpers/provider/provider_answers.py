"""Responses of the test provider, in the format of each API."""

import hashlib
import json
from collections.abc import Callable
from typing import Any

LABELS = ("late", "lost", "broken")
Json = dict[str, Any]


def correct_label(prompt: str) -> str:
    """Return the right answer to a prompt."""
    return LABELS[stable_number(prompt) % len(LABELS)]


def stable_number(text: str) -> int:
    """Return a number below 2**32 from the hash of a text, equal in every process."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16)


def read_prompt(body: Json) -> str:
    """Return the text of a request's input, in any API format."""
    content = body["messages"][-1]["content"] if "messages" in body else body.get("input", body.get("state"))
    return str(content)


def count_tokens(body: Json) -> tuple[int, int]:
    """Return the charged input and output tokens. A decision endpoint writes no tokens."""
    if "messages" in body:
        return max(1, len(json.dumps(body["messages"])) // 4), 3
    return max(1, len(json.dumps(body)) // 4), 0


def make_completion(body: Json, text: str) -> Json:
    input_tokens, output_tokens = count_tokens(body)
    return {
        "id": "c1",
        "object": "chat.completion",
        "created": 1,
        "model": f"{body.get('model', 'deployed')}-2026-11-01",
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}],
        "usage": {
            "prompt_tokens": input_tokens,
            "completion_tokens": output_tokens,
            "total_tokens": input_tokens + output_tokens,
        },
    }


def make_message(body: Json, text: str) -> Json:
    input_tokens, output_tokens = count_tokens(body)
    return {
        "id": "m1",
        "type": "message",
        "role": "assistant",
        "model": f"{body.get('model', 'deployed')}-20261101",
        "content": [{"type": "text", "text": text}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": input_tokens, "output_tokens": output_tokens},
    }


def spread_probabilities(labels: list[str], text: str) -> dict[str, float]:
    """Return a probability for each label, 0.9 for the answer."""
    return {label: 0.9 if label == text else 0.1 / (len(labels) - 1) for label in labels}


def make_decision(body: Json, text: str) -> Json:
    (question,) = body["questions"]
    by_label = spread_probabilities([choice["value"] for choice in question["choices"]], text)
    usage = {"input_tokens": count_tokens(body)[0], "output_tokens": 0, "total_tokens": count_tokens(body)[0]}
    usage |= {"input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0}}  # type: ignore[dict-item]
    usage |= {"output_tokens_details": {"reasoning_tokens": 0}}  # type: ignore[dict-item]
    probabilities = [{"value": value, "probability": probability} for value, probability in by_label.items()]
    answer: Json = {"type": "choice", "name": None, "choice": text, "confidence": 0.8, "probabilities": probabilities}
    if text not in by_label:
        answer = {"type": "refusal", "name": None}
    return {"model": body["model"], "answers": [answer], "usage": usage}


def make_systemone(body: Json, text: str) -> Json:
    ((name, question),) = body["questions"].items()
    probabilities = spread_probabilities([*question["criteria"]], text)
    answer = {"type": "choice", "choice": text, "probabilities": probabilities, "confidence": 0.8}
    usage = {"input_tokens": count_tokens(body)[0], "output_tokens": 0}
    return {"model": body["model"], "answers": {name: answer}, "usage": usage}


RESPONSE_MAKERS: dict[str, Callable[[Json, str], Json]] = {
    "chat": make_completion,
    "messages": make_message,
    "decisions": make_decision,
    "systemone": make_systemone,
}
