"""Accuracy of the pocket model's greedy answers: `python -m pocket.evaluate --sgd <folder>`.

The tasks are those of `corpus.py`, sampled with other seeds than in training from the same dialogues. This measures
what the model learned in training, not generalization to other data.
"""

import argparse
import random
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from pocket import corpus

MODEL_DIR = Path(__file__).parent / "model"
# A key is the random seed of its task and its name in the table of pocket/model/README.md.
TASK_GENERATORS = {
    "intents": corpus.make_intents,
    "domains": corpus.make_domains,
    "slots": corpus.make_slots,
    "mentioned": corpus.make_value_lookup,
    "forms": corpus.make_json_extraction,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sgd", type=Path, required=True, help="folder with dialogues.jsonl.gz and schema.json")
    parser.add_argument("--packs", type=int, default=40, help="packs of each task")
    arguments = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    model = AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32).eval()
    sgd = corpus.load_corpus(arguments.sgd)
    for name, make_pack in TASK_GENERATORS.items():
        rng = random.Random(f"evaluate/{name}")
        packs = [make_pack(sgd, rng) for _ in range(arguments.packs)]
        examples = [(pack.opening + part.prompt, part.answer) for pack in packs for part in pack.parts[:6]]
        n_correct = sum(is_answer_greedy(model, tokenizer, prompt, answer) for prompt, answer in examples)
        print(f"| {name} | {n_correct / len(examples):.0%} of {len(examples)} |", flush=True)


def is_answer_greedy(model: torch.nn.Module, tokenizer: AutoTokenizer, prompt: str, answer: str) -> bool:
    """Return whether every token of the answer is the most likely one after the tokens before it."""
    prompt_ids, answer_ids = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, answer))
    with torch.inference_mode():
        logits = model(torch.tensor([prompt_ids + answer_ids])).logits[0, len(prompt_ids) - 1 : -1]
    return bool(logits.argmax(-1).tolist() == answer_ids)


if __name__ == "__main__":
    main()
