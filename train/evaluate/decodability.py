"""Check that every training answer can be decoded under the output constraint, token by token.

    row T000017 of train: what it learns, '<think>\\n\\n</think>\\n\\nlate<|im_end|>', can never be decoded: the output
    constraint forbids token 1 of it, '<think>'

Validation, reference answers and the server all decode under the compiled constraint up to the stop token. If a
template puts text before the answer, the model would be trained on text that nothing can decode. The parity check would
not find this, because both of its sides would be wrong in the same way.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from insource.config.errors import RecipeError
from insource.tasks.rendering import chat_template
from insource.tasks.task_kind import TaskKind
from train.evaluate import constrained_decoding
from train.packing.packing_plan import TokenizedRow

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def check_answers_decodable(
    task: TaskKind,
    spec: object,
    data: Sequence[Mapping[str, object]],
    rows: Sequence[TokenizedRow],
    tokenizer: "PreTrainedTokenizerBase",
    vocabulary_size: int,
) -> None:
    """Raise RecipeError if a training answer cannot be decoded; `rows` are the rows of `data` as token ids.

    The constraint must accept the answer token by token, the stop token last. A free-text answer must equal the text
    that a server decodes after the prompt. The error names row, token and template. Raise RecipeError also if the
    tokenizer has tokens that the model lacks.
    """
    largest = max(max(row.prompt_ids + [token for ids in row.completions for token in ids]) for row in rows)
    if largest >= vocabulary_size:
        raise RecipeError(
            f"model.base: the tokenizer of {tokenizer.name_or_path} has token {largest} "
            f"({tokenizer.convert_ids_to_tokens(largest)!r}), but the model has {vocabulary_size} tokens: tokenizer "
            "and config.json are not from the same model",
            code="INS-T010",
        )
    grammar = task.grammar(spec)
    constraint = constrained_decoding.compile_grammar(tokenizer, vocabulary_size, grammar) if grammar else None
    checked: set[tuple[int, ...]] = set()
    for data_row, row in zip(data, rows, strict=True):
        for answer, ids in zip(task.training_answers(spec, data_row["target"]), row.completions, strict=True):
            if tuple(ids) in checked:
                continue
            problem = (
                _find_forbidden_token(constraint, tokenizer, ids)
                if constraint
                else _find_text_difference(tokenizer, row, ids, answer)
            )
            if problem:
                raise RecipeError(
                    f"row {row.id} of train: its answer {tokenizer.decode(ids)!r} cannot be decoded: {problem}"
                    f"\n  Prompt and answer are rendered by the chat template of {tokenizer.name_or_path}. Set "
                    "model.template or model.stop, change the answer, or use another base.",
                    code="INS-T011",
                )
            if constraint:
                checked.add(tuple(ids))


def _find_forbidden_token(constraint: object, tokenizer: "PreTrainedTokenizerBase", ids: Sequence[int]) -> str | None:
    """Return the first token that the constraint rejects, or None if it accepts all and ends with the last."""
    import xgrammar

    matcher = xgrammar.GrammarMatcher(constraint)
    for position, token in enumerate(ids, 1):
        if matcher.is_terminated() or not matcher.accept_token(token):
            return f"the output constraint forbids token {position} of it, {tokenizer.decode([token])!r}"
    return None if matcher.is_terminated() else f"it does not end in the stop token {tokenizer.eos_token!r}"


def _find_text_difference(
    tokenizer: "PreTrainedTokenizerBase", row: TokenizedRow, ids: Sequence[int], answer: str
) -> str | None:
    """Return how the decoded answer differs from the answer in the data, or None if it does not."""
    if ids[-1:] != [tokenizer.eos_token_id]:
        return f"it does not end in the stop token {tokenizer.eos_token!r}"
    if tokenizer.eos_token_id in ids[:-1]:
        return f"the stop token {tokenizer.eos_token!r} occurs within it"
    text = chat_template.decode_completion(tokenizer, row.prompt_ids, ids[:-1])
    return (
        None
        if text == answer == constrained_decoding.decode_text(tokenizer, ids)
        else f"the answer of the data is {answer!r}"
    )
