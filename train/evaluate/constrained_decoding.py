"""Greedy decoding under the task's output constraint, for many rows together.

This is the only decision rule of the project. The constraint is compiled by xgrammar, the library that also constrains
vLLM's output; a free-text task has none. Common prefixes of prompts are computed and kept once (shared_cache.py).
greedy.py chooses the tokens.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING

from insource.config.errors import StageError
from insource.tasks.records.field_confidence import lowest_field_log_probability
from train.device import out_of_memory
from train.evaluate import decoding_memory, greedy
from train.evaluate.greedy import RowState
from train.evaluate.padded_cache import PaddedCache
from train.evaluate.row_cache import RowCache, Span, UnsupportedAttentionError
from train.evaluate.shared_cache import SharedCache
from train.model import architecture, recurrent_layers
from train.packing import prefix_groups

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Minimum rows of a group with its own prefix, if there are many rows: a small batch takes as many passes as a full one.
MIN_GROUP_ROWS = 16


@dataclass(frozen=True)
class DecodedAnswer:
    """One decoded answer.

    `log_probability` is that of the decoded path: each step is renormalized over the allowed tokens.
    """

    text: str
    token_ids: list[int]
    log_probability: float
    margin: float
    """The smallest lead in log-probability (natural logarithm) of a chosen token over the next best allowed one.

    It is the minimum over all steps, and infinite if no step had a choice.
    """
    complete: bool
    """Whether the answer ended with the stop token, not at `max_new_tokens`."""
    field_log_probability: float | None = None
    """The log-probability of the least certain field of a record; None if the answer is no record."""


def decode_answers(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[list[int]],
    grammar: str | None,
    *,
    batch_rows: int = decoding_memory.MAX_BATCH_ROWS,
    max_new_tokens: int = 64,
    on_progress: Callable[[int, str], None] = lambda rows, note: None,
    on_fallback: Callable[[str], None] = lambda message: None,
) -> list[DecodedAnswer]:
    """Return one answer for each prompt (token ids), in the order of the prompts.

    `grammar` is EBNF, None for free text. `on_progress` gets the number of rows in finished batches, after each
    pass of the model also a note on the batch. `on_fallback`
    gets a message if the model cannot share prefixes, or if memory does not suffice for `batch_rows` rows. On a GPU a
    batch has as many rows as fit into free memory; after an out-of-memory error it has half as many.

    The weights and the mode of the model are unchanged. Raise StageError if memory does not suffice for one row.
    """
    import torch

    if not prompts:
        return []
    constraint = compile_grammar(tokenizer, model.config.get_text_config().vocab_size, grammar) if grammar else None
    answers: dict[int, DecodedAnswer] = {}
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        for group in _group_prompts(model, tokenizer, prompts, on_fallback):
            pending = group.row_indices
            while pending:
                lengths = [len(prompts[index]) for index in pending]
                batch = pending[: _fit_batch(model, group, lengths, max_new_tokens, batch_rows)]
                states = [
                    RowState(
                        index,
                        list(prompts[prompt_index][group.prefix_tokens :]),
                        tokenizer.eos_token_id,
                        max_new_tokens,
                    )
                    for index, prompt_index in enumerate(batch)
                ]
                report_pass = partial(_report_pass, states, partial(on_progress, len(answers)))
                if oom_message := _try_decode(group, states, constraint, tokenizer, report_pass):
                    batch_rows = _halve_batch(len(batch), oom_message, on_fallback)
                    continue
                answers |= {
                    prompt_index: _make_answer(tokenizer, state)
                    for prompt_index, state in zip(batch, states, strict=True)
                }
                pending = pending[len(batch) :]
                on_progress(len(answers), "")
    model.train(was_training)
    return [answers[index] for index in range(len(prompts))]


def compile_grammar(tokenizer: "PreTrainedTokenizerBase", vocabulary_size: int, grammar: str) -> object:
    """Return an output constraint (EBNF), compiled by xgrammar. It ends with the tokenizer's EOS."""
    return _compile_grammar(tokenizer, vocabulary_size, tokenizer.eos_token_id, grammar)


# A grammar of long texts compiles for seconds, and every validation of a training needs it.
@lru_cache(maxsize=4)
def _compile_grammar(
    tokenizer: "PreTrainedTokenizerBase", vocabulary_size: int, stop_token_id: int, grammar: str
) -> object:
    import xgrammar

    tokenizer_info = xgrammar.TokenizerInfo.from_huggingface(
        tokenizer, vocab_size=vocabulary_size, stop_token_ids=[stop_token_id]
    )
    return xgrammar.GrammarCompiler(tokenizer_info).compile_grammar(grammar)


@dataclass(frozen=True)
class _PrefixGroup:
    """Prompts with a common prefix, the shortest first."""

    row_indices: list[int]
    prefix_tokens: int
    """Shared tokens."""
    make_cache: Callable[[int], RowCache]
    """Build a cache for the given number of rows after the prefix."""


def _fit_batch(
    model: "PreTrainedModel", group: _PrefixGroup, lengths: Sequence[int], max_new_tokens: int, batch_rows: int
) -> int:
    """Return the number of pending rows to decode together."""
    free_bytes = out_of_memory.free_bytes(model.device)
    if free_bytes is None:
        return batch_rows
    tokens = [length - group.prefix_tokens + max_new_tokens for length in lengths]
    text_config = model.config.get_text_config()
    # The group's prefix is in memory already. It is counted once more for the memory of its own pass.
    return decoding_memory.fit_batch_rows(
        text_config, group.prefix_tokens, tokens, model.dtype.itemsize, free_bytes, batch_rows
    )


def _report_pass(states: Sequence[RowState], report: Callable[[str], None]) -> None:
    """Report how many rows of a batch are not finished, and the length of their answers."""
    if active := [state for state in states if not state.done]:
        tokens = max(len(state.token_ids) for state in active)
        rows = "1 row" if len(active) == 1 else f"{len(active)} rows"
        report(f"{rows} at token {tokens} of at most {active[0].max_tokens}")


def _try_decode(
    group: _PrefixGroup,
    states: Sequence[RowState],
    constraint: object,
    tokenizer: "PreTrainedTokenizerBase",
    on_pass: Callable[[], None],
) -> str | None:
    """Decode a batch. Return the error message if memory does not suffice, else None."""
    try:
        greedy.decode_batch(group.make_cache(len(states)), states, constraint, tokenizer, on_pass)
    except RuntimeError as error:
        if not out_of_memory.is_out_of_memory(error):
            raise
        return str(error).splitlines()[0]
    return None


def _halve_batch(rows: int, oom_message: str, on_fallback: Callable[[str], None]) -> int:
    """Return half as many rows, after a fallback message and the release of memory. Raise StageError for one row."""
    if rows == 1:
        raise StageError(
            f"decoding one row ran out of memory: {oom_message}\n"
            "  Set a lower train.max_length, which drops the longest rows, model.quantization=nf4, or a smaller "
            "model.base.",
            code="INS-T016",
        )
    out_of_memory.release_memory()
    on_fallback(f"out of memory with {rows} rows decoded at once: {rows // 2} from here on, the same answers")
    return rows // 2


def _group_prompts(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[list[int]],
    on_fallback: Callable[[str], None],
) -> Iterator[_PrefixGroup]:
    """Yield groups of prompts with a common prefix, each with a cache that contains the prefix."""
    problem = _prefix_sharing_problem(model, prompts[0])
    if problem:
        on_fallback(problem)
        order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
        yield _PrefixGroup(order, 0, lambda rows: PaddedCache(model, rows, tokenizer.pad_token_id))
        return
    lengths, prompt_groups = prefix_groups.group_by_prefix(prompts, max(2, len(prompts) // MIN_GROUP_ROWS))
    for group, length in enumerate(lengths):
        order = sorted(
            (index for index in range(len(prompts)) if prompt_groups[index] == group),
            key=lambda index: (len(prompts[index]), index),
        )
        prefix = None
        if length:
            prefix = SharedCache(model, 1)
            prefix.logits([Span(0, 0, prompts[order[0]][:length], 0)])
        yield _PrefixGroup(order, length, partial(SharedCache, model, prefix=prefix))


def _prefix_sharing_problem(model: "PreTrainedModel", prompt: Sequence[int]) -> str | None:
    """Return why rows of this model cannot share a prefix, or None if they can. The check computes one token."""
    name = model.config.get_text_config().model_type
    if architecture.has_recurrent_layers(model.config) and not recurrent_layers.can_split_rows(model.config):
        return f"{name} has layers that carry a state from token to token: validation computes each prompt by itself"
    try:
        SharedCache(model, 1).logits([Span(0, 0, prompt[:1], 0)])
    except UnsupportedAttentionError:
        return f"{name} attends in its own way: validation computes each prompt by itself"
    return None


def _make_answer(tokenizer: "PreTrainedTokenizerBase", state: RowState) -> DecodedAnswer:
    text = decode_text(tokenizer, state.token_ids)
    # Field confidences need the text of each token. They are computed only for records.
    tokens = [decode_text(tokenizer, [token]) for token in state.token_ids] if text.lstrip().startswith("{") else []
    field_log_probability = lowest_field_log_probability(tokens, state.log_probabilities) if tokens else None
    return DecodedAnswer(
        text, state.token_ids, sum(state.log_probabilities), state.margin, state.stopped, field_log_probability
    )


def decode_text(tokenizer: "PreTrainedTokenizerBase", ids: Sequence[int]) -> str:
    """Return the text of an answer's tokens, without the stop token and other special tokens."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))
