"""The assistant's turn of a chat template: the text before an answer and the text that ends it.

The text before an answer occurs in two places: at the end of an open prompt, and in an answered conversation.

                    open prompt ends in         answered turn
    Qwen2.5         assistant\\n                 assistant\\nLABEL<|im_end|>         exact
    Mistral v0.3    [/INST]                     [/INST] LABEL</s>                 a space: own suffix
    Gemma 4 31B     model\\n<|channel>thought... model\\nLABEL<turn|>              empty thought: own suffix
    Qwen3-Thinking  assistant\\n<think>\\n       (none)                            refused: it always thinks
    gpt-oss         <|start|>assistant          ...assistant<|channel|>final...   refused: a channel

If the two agree, training uses the template's own rendering. If they differ only by white space or an empty thought,
training uses open prompt, answer and stop as they are served (an own suffix). All other templates are refused.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jinja2 import TemplateError

from insource.config.errors import RecipeError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROBE_QUESTION, PROBE_ANSWER, PROBE_FOLLOW_UP = "Where is my parcel?", "It is late.", "And my refund?"

# Marks around a thought in templates: <think> </think>, [THINK] [/THINK], <|START_THINKING|> <|END_THINKING|>,
# <|channel>thought <channel|>, <seed:think> </seed:think>, </think:opensource>.
_THOUGHT = r"(?:think|thought|reason)[\w:]*"
_CLOSE = re.compile(rf"</[\w:]*?{_THOUGHT}>|\[/{_THOUGHT}\]|<\|end_?(?:of_)?{_THOUGHT}\|>|<channel\|>", re.IGNORECASE)
_OPEN = re.compile(
    rf"<(?![/|])[\w:]*?{_THOUGHT}>|\[{_THOUGHT}\]|<\|(?:(?:start|begin)_?(?:of_)?)?{_THOUGHT}\|>|<\|channel>thought",
    re.IGNORECASE,
)
# {part of the name of a model that thinks first: a model that answers immediately}.
_ALTERNATIVES = {
    "thinking-2507": "the Instruct-2507 model of the same size",
    "deepseek": "DeepSeek-V3.1",
    "nemotron": "Nemotron-3-Nano",
    "gpt-oss": "Qwen3-30B-A3B-Instruct-2507",
    "minimax": "Qwen3-30B-A3B-Instruct-2507",
}


@dataclass(frozen=True)
class Turn:
    """The texts that a template writes around an answer."""

    generation_prompt: str
    """Before an answer to be generated: the end of an open prompt."""
    lead: str
    """Before the answer of an answered conversation."""
    end: str
    """After an answer that ends the conversation."""
    next_message: str
    """After an answer that is followed by another message; empty if the template refuses such a conversation."""
    continues_prompt: bool
    """Whether the answered conversation equals the open prompt followed by the answer."""


def read_turn(tokenizer: "PreTrainedTokenizerBase") -> Turn:
    """Return the assistant's turn of the tokenizer's chat template.

    Raises RecipeError if the model does not answer immediately, or the template refuses a plain conversation.
    """
    name = tokenizer.name_or_path
    question = [{"role": "user", "content": PROBE_QUESTION}]
    answered = [*question, {"role": "assistant", "content": PROBE_ANSWER}]
    try:
        open_prompt = str(tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True))
        question_text = str(tokenizer.apply_chat_template(question, tokenize=False))
        answered_text = str(tokenizer.apply_chat_template(answered, tokenize=False))
    except (TemplateError, TypeError, ValueError) as error:
        raise _template_error(tokenizer, f"cannot render a plain conversation: {error}") from None
    if PROBE_QUESTION not in open_prompt or PROBE_QUESTION not in answered_text or PROBE_ANSWER not in answered_text:
        raise _template_error(tokenizer, "omits the message or its answer")
    prefix, _, end = answered_text.rpartition(PROBE_ANSWER)
    turn = Turn(
        generation_prompt=open_prompt.rpartition(PROBE_QUESTION)[2],
        lead=prefix.rpartition(PROBE_QUESTION)[2],
        end=end,
        next_message=_render_next_message(tokenizer, answered),
        continues_prompt=answered_text.startswith(open_prompt + PROBE_ANSWER),
    )
    _check_answers_at_once(turn, name, has_generation_prompt=open_prompt != question_text)
    return turn


def find_stop(turn: Turn, tokenizer: "PreTrainedTokenizerBase", stops: Sequence[str]) -> str | None:
    """Return the token among `stops` with which the template ends an answer, None if there is none.

    If nothing ends a last answer (GLM), the first token of the following message does.
    """
    for text in (turn.end, turn.next_message):
        tokens = tokenizer.convert_ids_to_tokens(tokenizer(text, add_special_tokens=False)["input_ids"])
        if stop := next((token for token in tokens if token in stops), None):
            return str(stop)
    return None


def _render_next_message(tokenizer: "PreTrainedTokenizerBase", conversation: list[dict[str, str]]) -> str:
    try:
        longer = tokenizer.apply_chat_template(
            [*conversation, {"role": "user", "content": PROBE_FOLLOW_UP}], tokenize=False
        )
    except (TemplateError, TypeError, ValueError):
        return ""
    return str(longer).rpartition(PROBE_ANSWER)[2].partition(PROBE_FOLLOW_UP)[0]


def _template_error(tokenizer: "PreTrainedTokenizerBase", problem: str) -> RecipeError:
    if _takes_only_parts(tokenizer):
        problem = "takes the content of a message only as a list of parts, and prompts are texts here"
    return RecipeError(f"model.base: the chat template of {tokenizer.name_or_path} {problem}", code="INS-T007")


def _takes_only_parts(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Return whether a template that omits or refuses a text renders it as a typed part (models of images)."""
    message: dict[str, object] = {"role": "user", "content": [{"type": "text", "text": PROBE_QUESTION}]}
    try:
        text = str(tokenizer.apply_chat_template([message], tokenize=False))
    except (TemplateError, TypeError, ValueError):
        return False
    # A template that knows no parts may write the list itself.
    return PROBE_QUESTION in text and "type" not in text.replace(PROBE_QUESTION, "")


def _check_answers_at_once(turn: Turn, name: str, has_generation_prompt: bool) -> None:
    """Raise RecipeError if more than white space and empty thoughts separates an answer from the open prompt."""
    prompt = turn.generation_prompt
    if _has_open_thought(prompt):
        raise RecipeError(
            f"model.base: {name} always thinks before it answers: its open prompt ends in {prompt[-40:]!r}. "
            f"Models are trained and decoded here to answer at once; {_suggest_model(name)} without a thinking mode",
            code="INS-T008",
        )
    if turn.continues_prompt or _strip_thoughts(prompt) == _strip_thoughts(turn.lead):
        return
    if not has_generation_prompt:
        raise RecipeError(
            f"model.base: the chat template of {name} writes no generation prompt (add_generation_prompt): an open "
            f"prompt ends in {prompt[-40:]!r}, and an answer begins with {turn.lead[-60:]!r}. Add one to "
            "chat_template.jinja in a copy of the base",
            code="INS-T007",
        )
    raise RecipeError(
        f"model.base: {name} does not answer right behind its open prompt: its chat template ends that in "
        f"{prompt[-40:]!r}, and begins an answer with {turn.lead[-60:]!r} (a channel, or a thought). "
        f"Models are trained and decoded here to answer at once; {_suggest_model(name)} without channels",
        code="INS-T008",
    )


def _has_open_thought(generation_prompt: str) -> bool:
    """Return whether a thought begins and does not end."""
    open_starts, close_starts = (
        [match.start() for match in marks.finditer(generation_prompt)] for marks in (_OPEN, _CLOSE)
    )
    return max(open_starts, default=-1) > max(close_starts, default=-1)


def _strip_thoughts(text: str) -> str:
    """Return a text without white space and without the marks of empty thoughts."""
    return re.sub(r"\s+", "", _CLOSE.sub("", _OPEN.sub("", text)))


def _suggest_model(name: str) -> str:
    lower = name.lower()
    suggestion = next((model for part, model in _ALTERNATIVES.items() if part in lower), "Qwen3-4B-Instruct-2507")
    return f"take {suggestion}, or another model"
