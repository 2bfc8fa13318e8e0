"""Time of the output constraint for each token of an answer: `python -m bench.constraint --sroie FOLDER`.

    | tokenizer | vocabulary | texts as           | compiled | ms a token | longest ms |
    | smollm2   | 49,152     | repeated rule      |  0.01 s  |      ...   |            |      the builds before
    | smollm2   | 49,152     | regular expression |  ...     |      ...   |            |      now

At each token xgrammar computes which tokens of the vocabulary may come next: in the validation of a training, and in
vLLM for each request. The answers are those of SROIE's receipts, which have texts of up to 200 characters. Both forms
accept the same answers. It writes bench/results/constraint.json.
"""

import argparse
import json
import re
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import machine
from insource.config import base_models, cli
from insource.config.base_models import POCKET
from insource.config.load import load
from insource.config.schema.train import Model
from insource.system import atomic_files
from insource.tasks import extraction
from insource.tasks.rendering import chat_template
from insource.tracking.base_models import smollm2_wheel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

RESULTS = Path(__file__).parent / "results" / "constraint.json"
# The form of texts in the builds before.
REPEATED_CHARACTER = r'[ !#-\[\]-\uD7FF\uE000-\U0010FFFF] | "\\" (["\\bfnrt] | "u00" [01] [0-9a-f])'


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.constraint", description="Time the output constraint.")
    parser.add_argument("--sroie", type=Path, required=True, help="folder with train.jsonl of SROIE")
    parser.add_argument("--rows", type=int, default=50, help="answers with regular expressions (50)")
    parser.add_argument("--rows-before", type=int, default=2, help="answers with repeated rules (2)")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    spec = extraction.make_spec(load("sroie", [], "cpu").recipe.task, {})
    answers = read_answers(arguments.sroie / "train.jsonl", spec, arguments.rows)
    smollm2_wheel.ensure_smollm2_folder(str(base_models.smollm2_dir()))
    now = extraction.grammar(spec)
    forms = {
        "repeated rule": (repeat_rule(now), answers[: arguments.rows_before]),
        "regular expression": (now, answers),
    }
    results = []
    for name, folder in (("pocket", POCKET), ("smollm2", base_models.smollm2_dir())):
        tokenizer = chat_template.load_tokenizer(Model(base=str(folder)))
        for form, (grammar, form_answers) in forms.items():
            result = measure(tokenizer, grammar, form_answers)
            results.append({"tokenizer": name, "form": form, **result})
            print(f"{name:<8} {form:<18} compiled in {result['compile_seconds']:.2f} s, "
                  f"{result['mean_ms']:.3f} ms a token, the longest {result['max_ms']:.1f} ms")  # fmt: skip
    atomic_files.write_json(arguments.results, results)
    return cli.OK


def read_answers(path: Path, spec: extraction.Spec, rows: int) -> list[str]:
    """Return the answers of the first rows, as training has them."""
    lines = path.read_text(encoding="utf-8").splitlines()[:rows]
    targets = (json.loads(line)["target"] for line in lines)
    return [extraction.answer_text(spec, extraction.canonical_record(spec, target)) for target in targets]


def repeat_rule(grammar: str) -> str:
    """Return the grammar with each text as a repeated rule."""
    lines = [re.sub(r"^(text_(\d+)) ::= .*", r'\1 ::= "\\"" char{1,\2} "\\""', line) for line in grammar.splitlines()]
    return "\n".join([*lines, f"char ::= {REPEATED_CHARACTER}"])


def measure(tokenizer: "PreTrainedTokenizerBase", grammar: str, answers: Sequence[str]) -> dict[str, Any]:
    """Return the time of compilation, and that of the allowed tokens at each step of the answers."""
    import xgrammar

    tokenizer_info = xgrammar.TokenizerInfo.from_huggingface(
        tokenizer, vocab_size=len(tokenizer), stop_token_ids=[tokenizer.eos_token_id]
    )
    started_at = time.perf_counter()
    compiled = xgrammar.GrammarCompiler(tokenizer_info).compile_grammar(grammar)
    compile_seconds = time.perf_counter() - started_at
    mask, seconds = xgrammar.allocate_token_bitmask(1, len(tokenizer)), []
    for answer in answers:
        matcher = xgrammar.GrammarMatcher(compiled)
        for token in tokenizer(answer, add_special_tokens=False)["input_ids"]:
            started_at = time.perf_counter()
            matcher.fill_next_token_bitmask(mask)
            seconds.append(time.perf_counter() - started_at)
            assert matcher.accept_token(token)
    return {
        "vocabulary": len(tokenizer),
        "answers": len(answers),
        "tokens": len(seconds),
        "compile_seconds": round(compile_seconds, 3),
        "mean_ms": 1e3 * statistics.mean(seconds),
        "max_ms": 1e3 * max(seconds),
        **machine.describe_call("python -m bench.constraint --sroie FOLDER"),
    }


if __name__ == "__main__":
    cli.run_cli(main)
