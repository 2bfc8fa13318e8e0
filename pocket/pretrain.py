"""Pretraining of the pocket model: `python -m pocket.pretrain --sgd <folder of the corpus>`.

One seeded run trains a byte-level BPE tokenizer, then a Llama of 5.5 million parameters on packs of `corpus.py`. The
parts of a pack share one row after its opening, and do not see each other. The learning rate is constant, then falls
linearly over the last quarter. So a longer run with the same seed has the same first steps as a shorter one. Every step
samples its data from (seed, step), so a resumed run equals an uninterrupted one.
"""

import argparse
import json
import random
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from pocket import corpus

VOCABULARY_SIZE = 4096
ROW_TOKENS = 768
ROWS_PER_STEP = 8
SEED = 17
WARMUP_STEPS = 40
OPENING_WEIGHT, PROMPT_WEIGHT = 0.2, 1.0
LANGUAGE_STEPS = 600
CHAT_TEMPLATE = (
    "{{- bos_token }}{%- for message in messages %}"
    "{{- '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|assistant|>\n' }}{%- endif %}"
)
PRETOKENIZER_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def train_tokenizer(sgd: corpus.SgdCorpus) -> PreTrainedTokenizerFast:
    """Return the tokenizer: byte-level BPE, which can encode any text, trained on 20,000 packs of the corpus."""
    special_tokens = [corpus.PAD, corpus.BEGIN, corpus.END, corpus.SYSTEM, corpus.USER, corpus.ASSISTANT]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZER_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=special_tokens,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    packs = corpus.generate_packs(sgd, random.Random(SEED), corpus.LANGUAGE_MIX)
    texts = (part.prompt + part.answer for _ in range(20_000) for part in next(packs).parts)
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=corpus.BEGIN,
        eos_token=corpus.END,
        pad_token=corpus.PAD,
        chat_template=CHAT_TEMPLATE,
        model_max_length=4096,
        clean_up_tokenization_spaces=False,
    )


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Return the untrained model. Its head size of 64 is supported by vLLM's attention on a CPU."""
    torch.manual_seed(SEED)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY_SIZE,
            hidden_size=256,
            intermediate_size=704,
            num_hidden_layers=6,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=4096,
            tie_word_embeddings=True,
            attn_implementation="sdpa",
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def curriculum_stage(step: int) -> tuple[Mapping[corpus.TaskGenerator, float], float]:
    """Return the task mix of a step and the loss weight of an answer token: language first, then mostly tasks."""
    return (corpus.LANGUAGE_MIX, 2.0) if step < LANGUAGE_STEPS else (corpus.TASK_MIX, 6.0)


def generate_rows(
    sgd: corpus.SgdCorpus, tokenizer: PreTrainedTokenizerFast, step: int
) -> Iterator[dict[str, torch.Tensor]]:
    """Yield rows of ROW_TOKENS: ids, positions, group and branch of each token, and its loss weight.

    A token sees the earlier tokens of its own branch and of its group's opening (branch 0).
    """

    def new_row() -> dict[str, list[float]]:
        return {"ids": [], "positions": [], "group": [], "branch": [], "weight": []}

    def add(row: dict[str, list[float]], ids: list[int], start: int, group: int, branch: int, weight: float) -> None:
        row["ids"] += ids
        row["positions"] += range(start, start + len(ids))
        row["group"] += [group] * len(ids)
        row["branch"] += [branch] * len(ids)
        row["weight"] += [weight] * len(ids)

    encode = tokenizer._tokenizer.encode_batch_fast
    mix, answer_weight = curriculum_stage(step)
    row, group = new_row(), 1
    for pack in corpus.generate_packs(sgd, random.Random(f"{SEED}/{step}"), mix):
        texts = [pack.opening, *(text for part in pack.parts for text in (part.prompt, part.answer))]
        opening, *branches = [encoded.ids for encoded in encode(texts, add_special_tokens=False)]
        if len(row["ids"]) + len(opening) + 80 > ROW_TOKENS:
            yield _to_tensors(row)
            row, group = new_row(), 1
        if len(opening) + 80 > ROW_TOKENS:
            continue
        add(row, opening, 0, group, 0, OPENING_WEIGHT)
        for branch, (prompt_ids, answer_ids) in enumerate(zip(branches[::2], branches[1::2], strict=True), start=1):
            available_tokens = ROW_TOKENS - len(row["ids"])
            if opening and len(prompt_ids) + len(answer_ids) > available_tokens:
                break
            # The first token of a branch has no loss: the token before it in the row belongs to another branch.
            add(row, prompt_ids[:1], len(opening), group, branch, 0.0)
            add(row, prompt_ids[1:], len(opening) + 1, group, branch, PROMPT_WEIGHT)
            add(
                row,
                answer_ids[: available_tokens - len(prompt_ids)],
                len(opening) + len(prompt_ids),
                group,
                branch,
                answer_weight if opening else PROMPT_WEIGHT,
            )
        group += 1


def _to_tensors(row: dict[str, list[float]]) -> dict[str, torch.Tensor]:
    missing = ROW_TOKENS - len(row["ids"])
    return {name: torch.tensor(values + [0] * missing) for name, values in row.items()}


def weighted_loss(model: LlamaForCausalLM, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the weighted mean loss of a batch of rows ([rows, ROW_TOKENS] each)."""
    group, branch = batch["group"], batch["branch"]
    same_group = group[:, :, None] == group[:, None, :]
    visible = same_group & ((branch[:, :, None] == branch[:, None, :]) | (branch[:, None, :] == 0))
    mask = (visible & torch.ones(ROW_TOKENS, ROW_TOKENS, dtype=torch.bool).tril())[:, None]
    hidden = model.model(
        input_ids=batch["ids"], position_ids=batch["positions"], attention_mask=mask, use_cache=False
    ).last_hidden_state
    weight = batch["weight"][:, 1:].flatten()
    is_weighted = weight > 0
    logits = model.lm_head(hidden[:, :-1].flatten(0, 1)[is_weighted])
    losses = torch.nn.functional.cross_entropy(logits, batch["ids"][:, 1:].flatten()[is_weighted], reduction="none")
    mean: torch.Tensor = (losses * weight[is_weighted]).sum() / weight.sum()
    return mean


class Muon(torch.optim.Optimizer):
    """Momentum with orthogonalized matrix updates, scaled to the size of AdamW's updates.

    Sources: Jordan et al. 2024; arXiv:2502.16982. It computes in float32, unlike torch.optim.Muon: bfloat16 is 15 times
    slower on a CPU without bfloat16 instructions.
    """

    def __init__(self, parameters: list[torch.nn.Parameter], rate: float) -> None:
        super().__init__(parameters, {"lr": rate})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for settings in self.param_groups:
            for parameter in settings["params"]:
                momentum = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
                momentum.lerp_(parameter.grad, 0.05)
                update = orthogonalize(parameter.grad.lerp(momentum, 0.95))
                parameter.mul_(1 - 0.05 * settings["lr"])
                parameter.add_(update, alpha=-0.2 * max(parameter.shape) ** 0.5 * settings["lr"])


def orthogonalize(matrix: torch.Tensor) -> torch.Tensor:
    """Return approximately the nearest matrix with orthonormal rows or columns, by five Newton-Schulz iterations."""
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    result: torch.Tensor = x.T if tall else x
    return result


def learning_rate_factor(step: int, steps: int) -> float:
    """Return the factor of the peak rate: warm-up, constant, then linear to zero over the last quarter."""
    return min(1.0, (step + 1) / WARMUP_STEPS, (steps - step) / (steps / 4))


def pretrain(sgd_folder: Path, checkpoint_folder: Path, steps: int, rate: float) -> None:
    """Train for `steps` steps, with checkpoints in `checkpoint_folder`; write the finished model to `pocket/model`."""
    sgd = corpus.load_corpus(sgd_folder)
    tokenizer = train_tokenizer(sgd)
    model = build_model(tokenizer)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    other_parameters = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    optimizers = (
        Muon(matrices, rate),
        torch.optim.AdamW(other_parameters, lr=rate, betas=(0.9, 0.95), weight_decay=0.0),
    )
    checkpoint_folder.mkdir(parents=True, exist_ok=True)
    start = _load_checkpoint(checkpoint_folder, model, optimizers)
    started_at = time.time()
    for step in range(start, steps):
        row_stream = generate_rows(sgd, tokenizer, step)
        rows = [next(row_stream) for _ in range(ROWS_PER_STEP)]
        batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        loss = weighted_loss(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            for settings in optimizer.param_groups:
                settings["lr"] = rate * learning_rate_factor(step, steps)
            optimizer.step()
            optimizer.zero_grad()
        if step % 10 == 0:
            record = {"step": step, "loss": round(loss.item(), 4), "seconds": round(time.time() - started_at, 1)}
            print(json.dumps(record), flush=True)
        if (step + 1) % 100 == 0:
            state = {"step": step + 1, "model": model.state_dict(), "optimizers": [o.state_dict() for o in optimizers]}
            torch.save(state, checkpoint_folder / "new.pt")
            (checkpoint_folder / "new.pt").rename(checkpoint_folder / f"step-{step + 1:05d}.pt")
            _save_model(model, tokenizer, checkpoint_folder / "model")
    _save_model(model, tokenizer, Path(__file__).parent / "model")


def _load_checkpoint(
    checkpoint_folder: Path, model: LlamaForCausalLM, optimizers: tuple[torch.optim.Optimizer, ...]
) -> int:
    paths = sorted(checkpoint_folder.glob("step-*.pt"))
    if not paths:
        return 0
    state = torch.load(paths[-1], weights_only=True)
    model.load_state_dict(state["model"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    return int(state["step"])


def _save_model(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the model in bfloat16 (half the size); the model in training is unchanged."""
    weights = {name: value.detach().to(torch.bfloat16) for name, value in model.state_dict().items()}
    model.save_pretrained(folder, state_dict={k: v for k, v in weights.items() if k != "lm_head.weight"})
    config = json.loads((folder / "config.json").read_text(encoding="utf-8")) | {"dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    tokenizer.save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sgd", type=Path, required=True, help="folder with dialogues.jsonl.gz and schema.json")
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints")
    parser.add_argument("--steps", type=int, default=1600)
    parser.add_argument("--rate", type=float, default=3e-3)
    arguments = parser.parse_args()
    pretrain(arguments.sgd, arguments.work, arguments.steps, arguments.rate)


if __name__ == "__main__":
    main()
