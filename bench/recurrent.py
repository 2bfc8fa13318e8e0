"""Recurrent bases behind a shared prefix, against rows one by one: `python -m bench.recurrent --banking77 FOLDER`.

One model of each family with RANDOM weights (real recurrent bases were not run), LoRA of rank 16, Banking77's rows, 16
an update, float32 on a CPU. Both ways compute the same updates in turns, in one process; medians count. Rows one by one
are padded batches, as `train.packing: none` makes them. If tree-recurrence is installed, its layers compute the same
packs too (without the package `kernels`, which it does not need on a CPU). Validation decodes with both caches. The
bench writes bench/results/recurrent.json. Nothing else may run on the machine.

`--small` shows that it runs, on tiny models and four rows of the demo. It writes a file only if `--results` names one.

    | family         | row by row   | shared prefix | times | tree-recurrence | gradients differ by | decoding, times |
    | Gated DeltaNet | ... examples/s | ...         | ...   | ...             | ...                 | ...             |
"""

import argparse
import importlib.util
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import machine
from bench.training import workloads
from insource.config import cli
from insource.config.base_models import POCKET
from insource.config.load import load
from insource.config.schema.train import Model
from insource.system import atomic_files, environment
from insource.system.console_log import log_line
from insource.tasks.rendering import chat_template
from insource.tasks.rendering.chat_template import Example
from train.evaluate import greedy
from train.evaluate.greedy import RowState
from train.evaluate.padded_cache import PaddedCache
from train.evaluate.row_cache import RowCache, Span
from train.evaluate.shared_cache import SharedCache
from train.loop.losses import supervised_loss
from train.model import base, recurrent_layers
from train.packing import collate, model_support, packing_plan
from train.packing.attention import pack_attention
from train.packing.attention_blocks import SHARED_PREFIX
from train.packing.packing_plan import PackingMode, TokenizedRow, UpdateShard, UpdateShards

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

RESULTS = Path(__file__).parent / "results" / "recurrent.json"
SEED = 17
SIZES = {"hidden_size": 384, "intermediate_size": 1024, "num_attention_heads": 6, "num_key_value_heads": 2}
TINY_SIZES = {**SIZES, "hidden_size": 96, "intermediate_size": 128}


@dataclass(frozen=True)
class Size:
    """The size of the bench."""

    shape: str
    rows: int
    """Rows of an update, and rows that are decoded."""
    answer_tokens: int
    model: Mapping[str, int]


COMPLETE = Size("banking77", 16, 6, SIZES)
SMALL = Size("classifier", 4, 2, TINY_SIZES)


@dataclass(frozen=True)
class Family:
    """A family of recurrent layers, and the config of a model that has them."""

    name: str
    models: str
    config_class: str
    layer_types: tuple[str, ...]
    settings: Mapping[str, Any]


# Recurrent and attention layers in the published proportion; sizes of heads and states as published.
FAMILIES = (
    Family(
        "Gated DeltaNet",
        "Qwen3.5",
        "Qwen3_5TextConfig",
        ("linear_attention",) * 3 + ("full_attention",),
        {
            "linear_num_key_heads": 3,
            "linear_num_value_heads": 6,
            "linear_key_head_dim": 128,
            "linear_value_head_dim": 128,
            "head_dim": 64,
        },
    ),
    Family(
        "Mamba2",
        "Granite 4",
        "GraniteMoeHybridConfig",
        ("linear_attention",) * 3 + ("full_attention",),
        {
            "mamba_n_heads": 12,
            "mamba_d_head": "auto",
            "mamba_d_state": 128,
            "mamba_n_groups": 1,
            "num_local_experts": 0,
            "shared_intermediate_size": 1024,
        },
    ),
    Family("short convolution", "LFM2", "Lfm2Config", ("conv",) * 2 + ("full_attention",) + ("conv",), {}),
)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.recurrent", description=__doc__.splitlines()[0])
    workloads.add_banking77_option(parser)
    parser.add_argument("--runs", type=int, default=3, help="updates of each way, after one that warms up")
    parser.add_argument("--small", action="store_true", help="tiny models and few rows of the demo, to try the bench")
    parser.add_argument("--results", type=Path, help=f"where the JSON goes ({RESULTS.name}; --small: nowhere)")
    arguments = parser.parse_args()
    size = SMALL if arguments.small else COMPLETE
    tokenizer = chat_template.load_tokenizer(Model(base=str(POCKET)))
    data = workloads.load_workload(size.shape, tokenizer, size.rows, 0, arguments.banking77)
    families = []
    for family in FAMILIES:
        families.append(measure_family(family, data.examples, tokenizer, size, arguments.runs))
        log_line(table_row(families[-1]))
        if path := arguments.results or (None if arguments.small else RESULTS):
            atomic_files.write_json(path, build_result(arguments, data, families))
    print("| family | row by row | shared prefix | times | tree-recurrence | gradients differ by | decoding, times |")
    print("|---|---|---|---|---|---|---|", *map(table_row, families), sep="\n")
    return cli.OK


def build_result(
    arguments: argparse.Namespace, data: workloads.Workload, families: list[dict[str, Any]]
) -> dict[str, Any]:
    """Return the content of recurrent.json."""
    selection = "--small" if arguments.small else "--banking77 FOLDER"
    return {
        "command": f"python -m bench.recurrent {selection} --runs {arguments.runs}",
        "machine": machine.describe_hardware(on_gpu=False),
        "date": machine.utc_date(),
        "versions": environment.read_package_versions(),
        "weights": "random",
        "shape": data.name,
        "batch_size": len(data.examples),
        "prefix_tokens": data.prefix_tokens,
        "row_tokens": round(data.row_tokens, 1),
        "families": families,
    }


def build_model(family: Family, tokenizer: "PreTrainedTokenizerBase", sizes: Mapping[str, int]) -> "PreTrainedModel":
    """Return the model of a family with random weights and a new adapter."""
    import torch
    import transformers

    config = getattr(transformers, family.config_class)(
        **sizes,
        **family.settings,
        vocab_size=len(tokenizer),
        num_hidden_layers=len(family.layer_types),
        layer_types=list(family.layer_types),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=True,
    )
    torch.manual_seed(SEED)
    model = transformers.AutoModelForCausalLM.from_config(config)
    # As transformers initializes them, most heads forget a token within one or two more.
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("dt_bias"):
                parameter.fill_(-3.0)
            elif name.endswith("A_log"):
                parameter.uniform_(-1, 1)
    return base.add_adapter(model, load("classifier", ["lora.r=16"], "cpu").recipe.lora, SEED)


def measure_family(
    family: Family, examples: Sequence[Example], tokenizer: "PreTrainedTokenizerBase", size: Size, runs: int
) -> dict[str, Any]:
    """Return the figures of a family."""
    model = build_model(family, tokenizer, size.model)
    rows = [
        TokenizedRow(str(index), example.prompt_ids, (example.completion_ids,))
        for index, example in enumerate(examples)
    ]
    shards = {mode: build_shard(model, rows, mode) for mode in ("none", "shared_prefix")}
    ways: dict[str, Callable[[], dict[str, Any]]] = {
        "row_by_row": lambda: compute_gradients(model, shards["none"], "none"),
        "shared_prefix": lambda: compute_gradients(model, shards["shared_prefix"], "shared_prefix"),
    }
    if importlib.util.find_spec("tree_recurrence"):
        ways["tree_recurrence"] = lambda: compute_tree_gradients(model, shards["shared_prefix"])
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    gradients: dict[str, dict[str, Any]] = {}
    for _ in range(1 + runs):
        for way, compute in ways.items():
            started_at = time.perf_counter()
            gradients[way] = compute()
            seconds[way].append(time.perf_counter() - started_at)
    figures: dict[str, dict[str, Any]] = {
        way: {
            "examples_per_second": round(len(rows) / statistics.median(values[1:]), 3),
            "raw_seconds": values,
            "largest_gradient_difference": largest_difference(gradients[way], gradients["row_by_row"]),
        }
        for way, values in seconds.items()
    }
    return {
        "family": family.name,
        "models": family.models,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "packs": len(shards["shared_prefix"].packs),
        "times": round(
            figures["shared_prefix"]["examples_per_second"] / figures["row_by_row"]["examples_per_second"], 2
        ),
        **figures,
        "decoding": measure_decoding(model, [row.prompt_ids for row in rows], tokenizer, size.answer_tokens, runs),
    }


def build_shard(model: "PreTrainedModel", rows: Sequence[TokenizedRow], mode: PackingMode) -> UpdateShard:
    """Return the only update of the rows."""
    plan = packing_plan.build_packing_plan(rows, mode, 8192, len(rows), model_support.pack_cost(model.config, False))
    return UpdateShards(rows, plan, [range(len(rows))], 1)[0]


def compute_gradients(
    model: "PreTrainedModel", shard: UpdateShard, mode: PackingMode, tree: bool = False
) -> dict[str, Any]:
    """Return the gradients of an update, by the name of the parameter."""
    model.train().zero_grad(set_to_none=True)
    for pack in shard.packs:
        batch = collate.collate_pack(pack, mode, model.device, 0, SHARED_PREFIX)
        if tree:
            batch.inputs.update(tree_inputs(batch))
        with pack_attention(model.config, batch):
            loss = supervised_loss(model, batch, 0.0)[0] / shard.normalizer
            loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def tree_inputs(batch: collate.Batch) -> dict[str, Any]:
    """Return the arguments that tree-recurrence reads the segments of a pack from."""
    import torch

    ends = [segment.start + segment.tokens for segment in batch.segments]
    return {
        "tree_cu_seqlens_q": torch.tensor([0, *ends], dtype=torch.int32),
        "tree_segment_parents": torch.tensor([segment.parent for segment in batch.segments]),
    }


def compute_tree_gradients(model: "PreTrainedModel", shard: UpdateShard) -> dict[str, Any]:
    """Return the gradients of an update whose recurrent layers are tree-recurrence's."""
    import tree_recurrence

    support = tree_recurrence.install(model)
    if not support.shares_prefixes:
        raise RuntimeError(support.reason)
    try:
        with own_layers_off():
            return compute_gradients(model, shard, "shared_prefix", tree=True)
    finally:
        tree_recurrence.uninstall(model)


@contextmanager
def own_layers_off() -> Iterator[None]:
    """Leave recurrent layers alone inside of the block."""
    known = recurrent_layers.SUPPORTED_MODEL_TYPES
    recurrent_layers.SUPPORTED_MODEL_TYPES = frozenset()
    try:
        yield
    finally:
        recurrent_layers.SUPPORTED_MODEL_TYPES = known


def largest_difference(actual: Mapping[str, Any], expected: Mapping[str, Any]) -> float:
    """Return the largest relative difference of the gradients of a parameter."""
    return max(
        float((actual[name] - gradient).norm() / gradient.norm())
        for name, gradient in expected.items()
        if gradient.norm()
    )


def measure_decoding(
    model: "PreTrainedModel",
    prompts: Sequence[list[int]],
    tokenizer: "PreTrainedTokenizerBase",
    answer_tokens: int,
    runs: int,
) -> dict[str, Any]:
    """Return the rates of decoding a few tokens of free text for each prompt, by the cache, and the equal answers."""
    import torch

    length = chat_template.shared_prefix_length(prompts)

    def decode(shared: bool) -> list[list[int]]:
        prefix = length if shared else 0
        states = [
            RowState(index, list(prompt[prefix:]), tokenizer.eos_token_id, answer_tokens)
            for index, prompt in enumerate(prompts)
        ]
        cache: RowCache = PaddedCache(model, len(prompts), tokenizer.pad_token_id)
        if shared:
            first = SharedCache(model, 1)
            first.logits([Span(0, 0, prompts[0][:length], 0)])
            cache = SharedCache(model, len(prompts), first)
        greedy.decode_batch(cache, states, None, tokenizer)
        return [state.token_ids for state in states]

    model.eval()
    seconds: dict[bool, list[float]] = {False: [], True: []}
    answers: dict[bool, list[list[int]]] = {}
    with torch.inference_mode():
        for _ in range(1 + runs):
            for shared, values in seconds.items():
                started_at = time.perf_counter()
                answers[shared] = decode(shared)
                values.append(time.perf_counter() - started_at)
    rates = {shared: len(prompts) / statistics.median(values[1:]) for shared, values in seconds.items()}
    return {
        "rows": len(prompts),
        "answer_tokens": answer_tokens,
        "row_by_row_rows_per_second": round(rates[False], 3),
        "shared_state_rows_per_second": round(rates[True], 3),
        "times": round(rates[True] / rates[False], 2),
        "equal_answers": sum(one == other for one, other in zip(answers[False], answers[True], strict=True)),
    }


def table_row(family: Mapping[str, Any]) -> str:
    """Return a line of the table."""
    tree = family.get("tree_recurrence")
    cells = [
        f"{family['family']} ({family['models']})",
        f"{family['row_by_row']['examples_per_second']:.2f} examples/s",
        f"{family['shared_prefix']['examples_per_second']:.2f}",
        f"{family['times']:.1f}",
        f"{tree['examples_per_second']:.2f}" if tree else "not installed",
        f"{family['shared_prefix']['largest_gradient_difference']:.0e}",
        f"{family['decoding']['times']:.1f}",
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    warnings.filterwarnings("ignore", category=FutureWarning)
    cli.run_cli(main)
