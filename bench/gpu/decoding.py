"""Part 4 of the GPU bench: validation decoding of an NF4 base, without and with an adapter, as `make train` decodes.

The grammar has the workload's labels. Weights are dequantized during decoding where memory allows.
"""

import random
import time
from typing import TYPE_CHECKING, Any

from bench.gpu import random_models, training, workload
from bench.gpu.random_models import RandomModel
from bench.gpu.spec import CaseLog, Measurement, PartSpec
from bench.training import workloads
from bench.training.workloads import Workload
from insource.config.errors import StageError
from insource.tasks import classification
from train.evaluate.constrained_decoding import decode_answers
from train.model import base, dequantize

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MAX_NEW_TOKENS = 24


def run(spec: PartSpec, log: CaseLog) -> None:
    """Build the base, then decode the same rows without and with an adapter."""
    tokenizer = workload.load_tokenizer()
    built = random_models.build_nf4_model(spec, len(tokenizer))
    data = workload.load_rows(spec, tokenizer, 16 if spec.small else 128)
    log.run("base", lambda: decode(spec, built, built.model, tokenizer, data))
    recipe = training.build_recipe(spec, 16, 1)
    adapted = base.add_adapter(built.model, recipe.lora, recipe.train.seed)
    log.run("base with an adapter", lambda: decode(spec, built, adapted, tokenizer, data))


def decode(
    spec: PartSpec, built: RandomModel, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", data: Workload
) -> Measurement:
    """Return the rate of decoding all rows once, after a warm-up. Raise StageError if an answer is not a label."""
    prompts = [example.prompt_ids for example in data.examples]
    labels = workloads.synthetic_labels(workload.count_labels(spec), random.Random(workloads.SEED))
    grammar = classification.grammar(workloads.label_task(labels))
    notes: list[str] = []
    computed_tokens = [0]

    def count_tokens(_module: Any, inputs: tuple[Any, ...], _output: Any) -> None:
        computed_tokens[0] += inputs[0].numel()

    settings: dict[str, Any] = {"max_new_tokens": MAX_NEW_TOKENS, "on_fallback": notes.append}
    with dequantize.dequantize_layers(model, notes.append):
        decode_answers(model, tokenizer, prompts[:2], grammar, **settings)
        hook = model.get_input_embeddings().register_forward_hook(count_tokens)
        started_at = time.perf_counter()
        answers = decode_answers(model, tokenizer, prompts, grammar, **settings)
        seconds = time.perf_counter() - started_at
        hook.remove()
    if wrong := [answer.text for answer in answers if answer.complete and answer.text not in labels]:
        raise StageError(
            f"the constraint allows only labels, and {len(wrong)} answers are none: {wrong[0]!r}", code="INS-X010"
        )
    return Measurement(
        len(prompts) / seconds,
        "rows/s",
        2 * built.linear_parameters * computed_tokens[0] / seconds,
        # Validation on a CPU is float32.
        None if spec.on_gpu else "float32",
        details={
            "model": built.description,
            "rows": len(prompts),
            "prefix_tokens": data.prefix_tokens,
            "computed_tokens": computed_tokens[0],
            "answer_tokens": sum(len(answer.token_ids) for answer in answers),
            "incomplete_answers": sum(not answer.complete for answer in answers),
            "fallbacks": notes,
        },
    )
