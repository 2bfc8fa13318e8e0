"""Rendering of messages to token ids, by the base's own chat template only.

Training, validation and the reference answers all render with this module. A server renders the same messages with
the same template, and the parity check compares the ids.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from insource.config.errors import RecipeError
from insource.config.schema.train import Model
from insource.tasks.rendering import assistant_turn, base_tokenizer, hub_model, pinned_template
from insource.tasks.rendering.assistant_turn import Turn
from insource.tasks.rendering.pinned_template import PinnedTemplate

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Messages = list[dict[str, str]]
# Number of prompt tokens that decide how the first token of a completion is written as text.
CONTEXT_TOKENS = 8

# A decoded answer may need more tokens than the longest one in train. A higher limit costs no time for short answers.
ANSWER_LENGTH_FACTOR = 1.5
MIN_ANSWER_TOKENS = 64


@dataclass(frozen=True)
class Example:
    """One training example as token ids: prompt, and completion with the stop token at its end."""

    prompt_ids: list[int]
    completion_ids: list[int]


@dataclass(frozen=True)
class Rendering:
    """The prompt format of a base and the end of its answers."""

    tokenizer: "PreTrainedTokenizerBase"
    """With the pinned template as chat template, and the stop as EOS token."""
    pinned_values: dict[str, bool | str] = field(default_factory=dict)
    """Pinned variables of the template, such as {"enable_thinking": False, "date": "2026-01-01"}."""
    own_suffix_reason: str | None = None
    """Reason why training uses an own suffix instead of the template's, None if it does not."""
    stop_reason: str | None = None
    """Description of the stop, if it is not the tokenizer's own EOS."""

    def summary_lines(self) -> list[str]:
        """Return console lines about pinned variables and the stop."""
        values = ", ".join(f"{name} {str(value).lower()}" for name, value in self.pinned_values.items())
        lines = [f"template  pinned: {values} (model.template)"] if values else []
        return lines + ([f"stop      {self.stop_reason}"] if self.stop_reason else [])


def load_tokenizer(model: Model) -> "PreTrainedTokenizerBase":
    """Return the tokenizer of a base model for training and serving, see load_rendering."""
    return load_rendering(model).tokenizer


def load_rendering(model: Model) -> Rendering:
    """Return the rendering of a base, with pinned template and stop, by the recipe's model.template and model.stop.

    Raises RecipeError if there is no tokenizer, or the base cannot answer immediately.
    """
    model = hub_model.pin_commit(model)
    tokenizer = base_tokenizer.load_base_tokenizer(model)
    candidates: list[tuple[PinnedTemplate, Turn]] = []
    errors: list[tuple[PinnedTemplate, RecipeError]] = []
    for pinned in pinned_template.pin_template(tokenizer.chat_template, model.template, model.base):
        tokenizer.chat_template = pinned.template
        try:
            candidates.append((pinned, assistant_turn.read_turn(tokenizer)))
        except RecipeError as error:
            errors.append((pinned, error))
    if not candidates:
        # Prefer the reason that remains with thinking off.
        raise next((error for pinned, error in errors if pinned.disables_thinking), errors[0][1])
    # Prefer the first candidate in which open and answered prompts agree.
    pinned, turn = next((candidate for candidate in candidates if candidate[1].continues_prompt), candidates[0])
    tokenizer.chat_template = pinned.template
    return _make_rendering(model, tokenizer, pinned, turn)


def load_saved_tokenizer(folder: str) -> "PreTrainedTokenizerBase":
    """Return the tokenizer that training saved with an adapter or a model, with its pinned template."""
    return base_tokenizer.load_auto_tokenizer(folder, Model(base=folder))


def encode_prompts(tokenizer: "PreTrainedTokenizerBase", conversations: Sequence[Messages]) -> list[list[int]]:
    """Return the token ids of each conversation up to the answer."""
    return _encode(tokenizer, _render_prompts(tokenizer, conversations))


def render_examples(
    tokenizer: "PreTrainedTokenizerBase", conversations: Sequence[Messages], answers: Sequence[str]
) -> list[Example]:
    """Return the token ids of each conversation with its answer and the stop token (the tokenizer's EOS).

    If the template writes the answer directly after the open prompt, the template's rendering is used. Otherwise the
    completion is the answer and the stop after the open prompt, as served and decoded. The same applies to an answer
    that contains the text of a special token: it is encoded as plain text. Raises RecipeError if the model does not
    answer immediately.
    """
    assistant_turn.read_turn(tokenizer)
    open_prompts = _render_prompts(tokenizer, conversations)
    answered_conversations = [
        [*messages, {"role": "assistant", "content": text}]
        for messages, text in zip(conversations, answers, strict=True)
    ]
    texts = [str(rendered) for rendered in tokenizer.apply_chat_template(answered_conversations, tokenize=False)]
    prompts, full_ids = _encode(tokenizer, open_prompts), _encode(tokenizer, texts)
    special_ids, stop = _special_ids(tokenizer), tokenizer.eos_token_id
    plain_flags = [special_ids.isdisjoint(ids) for ids in _encode(tokenizer, answers)]
    decoded: dict[tuple[int, ...], str] = {}
    examples = []
    for open_text, text, prompt, ids, answer, is_plain in zip(
        open_prompts, texts, prompts, full_ids, answers, plain_flags, strict=True
    ):
        if is_plain and text.startswith(open_text + answer + tokenizer.eos_token) and ids[: len(prompt)] == prompt:
            completion = ids[len(prompt) : ids.index(stop, len(prompt)) + 1]
            # Labels repeat after the same tokens.
            key = (*prompt[-CONTEXT_TOKENS:], *completion)
            decoded[key] = decoded[key] if key in decoded else decode_completion(tokenizer, prompt, completion[:-1])
            if decoded[key] == answer:
                examples.append(Example(prompt, completion))
                continue
        examples.append(Example(prompt, [*_encode_answer(tokenizer, open_text, prompt, answer, is_plain), stop]))
    return examples


def decode_completion(tokenizer: "PreTrainedTokenizerBase", prompt_ids: Sequence[int], ids: Sequence[int]) -> str:
    """Return the text of completion tokens as a server writes it after a prompt, a leading space included."""
    context_ids = list(prompt_ids[-CONTEXT_TOKENS:])
    context, text = (
        str(tokenizer.decode(token_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
        for token_ids in (context_ids, context_ids + list(ids))
    )
    return text.removeprefix(context)


def max_answer_tokens(longest: int) -> int:
    """Return the token limit of an answer. `longest` is the longest completion of training, with its stop token."""
    return max(MIN_ANSWER_TOKENS, math.ceil(ANSWER_LENGTH_FACTOR * longest))


def count_tokens(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str]) -> list[int]:
    """Return the number of tokens of each text."""
    if tokenizer.is_fast:
        return [
            len(encoding) for encoding in tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        ]
    return [len(ids) for ids in _encode(tokenizer, texts)]


def template_sha256(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return the SHA-256 of the chat template, which identifies the trained template on a server."""
    return hashlib.sha256(tokenizer.chat_template.encode()).hexdigest()


def shared_prefix_length(sequences: Sequence[list[int]]) -> int:
    """Return the number of leading ids that all sequences share (0 without sequences)."""
    if not sequences:
        return 0
    # All sequences share the common prefix of the lexicographic minimum and maximum.
    low, high = min(sequences), max(sequences)
    length = 0
    while length < min(len(low), len(high)) and low[length] == high[length]:
        length += 1
    return length


def _make_rendering(
    model: Model, tokenizer: "PreTrainedTokenizerBase", pinned: PinnedTemplate, turn: Turn
) -> Rendering:
    """Return the rendering with its stop, which becomes the tokenizer's EOS. Raises RecipeError."""
    stops = base_tokenizer.list_stop_tokens(model, tokenizer)
    template_stop = assistant_turn.find_stop(turn, tokenizer, stops)
    stop = template_stop if model.stop == "auto" else _check_configured_stop(model, tokenizer, stops)
    if stop is None:
        raise RecipeError(
            f"model.stop: the chat template of {model.base} ends an answer with {turn.end[:40]!r}, which has "
            f"none of its stop tokens ({', '.join(stops)}); set model.stop to one of {', '.join(stops)}, or to another "
            "special token that the model has learnt to end an answer with",
            code="INS-T009",
        )
    stop_reason = None
    if stop != tokenizer.eos_token:
        source = "model.stop" if model.stop != "auto" else "the chat template and the generation config"
        stop_reason = f"answers end in {stop!r}, not in the tokenizer's EOS {tokenizer.eos_token!r} ({source})"
        tokenizer.eos_token = stop
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = stop
    own_suffix_reason = None
    if not turn.continues_prompt:
        own_suffix_reason = (
            f"its template begins an answer with {turn.lead[-40:]!r} and asks with {turn.generation_prompt[-40:]!r}"
        )
    elif not turn.end.startswith(stop):
        ending = f"writes {turn.end[:40]!r}" if turn.end.strip() else "writes nothing"
        own_suffix_reason = f"its template {ending} behind a last answer, where the stop {stop!r} is learnt"
    return Rendering(tokenizer, dict(pinned.values), own_suffix_reason, stop_reason)


def _check_configured_stop(model: Model, tokenizer: "PreTrainedTokenizerBase", stops: Sequence[str]) -> str:
    if model.stop in stops or tokenizer.get_vocab().get(model.stop) in _special_ids(tokenizer):
        return model.stop
    raise RecipeError(
        f"model.stop: {model.stop!r} is not a special token of {model.base}; allowed: "
        f"{', '.join(stops) or 'any special token'}, or leave it out (auto)",
        code="INS-T009",
    )


def _special_ids(tokenizer: "PreTrainedTokenizerBase") -> set[int]:
    return {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}


def _render_prompts(tokenizer: "PreTrainedTokenizerBase", conversations: Sequence[Messages]) -> list[str]:
    texts = tokenizer.apply_chat_template(list(conversations), tokenize=False, add_generation_prompt=True)
    return [str(text) for text in texts]


def _encode(
    tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str], split_special_tokens: bool = False
) -> list[list[int]]:
    splitting = {"split_special_tokens": True} if split_special_tokens else {}
    return tokenizer(list(texts), add_special_tokens=False, **splitting)["input_ids"]  # type: ignore[no-any-return]


def _encode_answer(
    tokenizer: "PreTrainedTokenizerBase", open_prompt: str, prompt: list[int], answer: str, is_plain: bool
) -> list[int]:
    """Return the ids of an answer after an open prompt that decode to exactly this text.

    Some tokenizers (SentencePiece) add a space before a text on its own, but not after a line break.
    """
    answer_ids, ids_after_break = _encode(tokenizer, [answer, f"\n{answer}"], split_special_tokens=not is_plain)
    candidates = [answer_ids]
    (line_break_ids,) = _encode(tokenizer, ["\n"])
    if ids_after_break[: len(line_break_ids)] == line_break_ids:
        candidates.append(ids_after_break[len(line_break_ids) :])
    if is_plain:
        (full_ids,) = _encode(tokenizer, [open_prompt + answer])
        if full_ids[: len(prompt)] == prompt:
            candidates.insert(0, full_ids[len(prompt) :])
    return next((ids for ids in candidates if decode_completion(tokenizer, prompt, ids) == answer), candidates[0])
