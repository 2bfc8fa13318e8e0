"""The text of a recipe, with comments on the origin of each value."""

import json
import os
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from data_prep.importer.survey import AnswerStatistics, Preamble
from data_prep.importer.task_inference import InferredTask
from insource.backends.wire import model_families
from insource.config.hosts import is_loopback, parse_host
from insource.config.providers import FALLBACK_PROVIDER, PROVIDERS

SCHEMA = Path(__file__).parents[2] / "recipes" / ".schema.json"
DEFAULT_METRICS = {
    "classification": "accuracy",
    "multilabel": "micro_f1",
    "extraction": "field_f1",
    "generation": "rouge_l",
    "preference": "preference_accuracy",
}
DEFAULT_INSTRUCTIONS = {
    "classification": "Choose the label of the text.",
    "multilabel": "Name every label that applies to the text.",
    "extraction": "Read the text and fill in the fields.",
    "generation": "Answer the message as the examples do.",
    "preference": "Answer the message.",
}
MIN_INSTRUCTION_CHARACTERS = 10
COMMENT_WIDTH = 118
YAML_RESERVED_WORDS = ("true", "false", "null", "yes", "no", "on", "off", "y", "n")
DEFAULT_EPOCHS = {"classification": 3, "extraction": 6, "generation": 6, "preference": 2}
# New answers may be longer than the longest one so far, and some alphabets need more than one token per character.
TOKENS_PER_CHARACTER, MIN_ANSWER_TOKENS = 2, 64
# Token limits of a row, the first is the default. The estimate is three bytes of UTF-8 per token, which is also a
# character of Chinese per token; the next limit is chosen.
BYTES_PER_TOKEN, ROW_TOKEN_LIMITS, PACK_TOKENS = 3, (2048, 4096, 8192, 16384, 32768), 8192


@dataclass(frozen=True)
class RecipeSource:
    """The source of the recipe."""

    train: Path
    test: Path | None
    columns: Mapping[str, str]
    system: str
    """The system message of the selected rows."""
    preamble: Preamble
    filters_system: bool
    """Whether rows with another system message are filtered out by data.where."""
    group: str | None
    """A column whose rows stay in one split."""
    unusable_fraction: float
    """Fraction of the selected rows that are unusable."""
    redact: tuple[str, ...]


@dataclass(frozen=True)
class IncumbentModel:
    """The model that handles the task today."""

    name: str
    base_url: str | None
    reason: str
    is_fine_tuned: bool
    """Whether it was fine-tuned on conversations like these."""

    @property
    def provider(self) -> str:
        """Return the provider, inferred from the model name and the address."""
        host = parse_host(self.base_url) or ""
        for name, provider in PROVIDERS.items():
            if provider.address == "resource" and provider.key and host.endswith(provider.key.hosts):
                return name
        words = {name: provider.model_word for name, provider in PROVIDERS.items() if provider.model_word}
        return next((name for name, word in words.items() if word in self.name), FALLBACK_PROVIDER)

    @property
    def display_name(self) -> str:
        """Return the name in plans and reports."""
        return f"{self.provider}:{self.name}"


def make_instruction(task: InferredTask, source: RecipeSource) -> str:
    """Return the instruction: the system message with the preamble, or a default text if that is too short."""
    parts = [source.system.strip(), source.preamble.prefix.strip(), source.preamble.suffix.strip()]
    instruction = "\n".join(part for part in parts if part)
    if len(instruction) >= MIN_INSTRUCTION_CHARACTERS:
        return instruction
    return f"{instruction} {DEFAULT_INSTRUCTIONS[task.variant]}".lstrip()


def render_recipe(
    folder: Path,
    header_comments: list[str],
    task: InferredTask,
    source: RecipeSource,
    model: IncumbentModel | None,
    answers: AnswerStatistics,
) -> str:
    """Return the text of the recipe. `folder` is the folder of the recipe, `header_comments` its first comments."""
    lines = [f"# yaml-language-server: $schema={_relative_path(SCHEMA, folder)}"]
    for comment in header_comments:
        lines += textwrap.wrap(
            comment, COMMENT_WIDTH, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False
        )
    lines += [*_task_lines(task, source), *_data_lines(folder, task, source)]
    rate = "learning_rate: 5.0e-5, beta: 0.1" if task.kind == "preference" else "learning_rate: 2.0e-4"
    max_row_tokens = choose_row_tokens(answers.longest_row_bytes + len(make_instruction(task, source).encode()))
    limit_settings = f", max_length: {max_row_tokens}" if max_row_tokens > ROW_TOKEN_LIMITS[0] else ""
    limit_settings += f", pack_tokens: {max_row_tokens}" if max_row_tokens > PACK_TOKENS else ""
    if source.redact:
        lines.append(f"privacy: {{redact: [{', '.join(source.redact)}]}}    # replaced in the converted file already")
    lines += [
        "model: {base: Qwen/Qwen3-4B-Instruct-2507, quantization: nf4}    # docs/models.md lists other bases",
        "lora: {r: 16, lora_alpha: 32, target_modules: all-linear}",
        f"train: {{num_train_epochs: {DEFAULT_EPOCHS[task.kind]}, {rate}, batch_size: 16, "
        f"packing: shared_prefix{limit_settings}}}",
        *_compare_lines(task, source, model, answers.longest),
    ]
    if max_row_tokens > ROW_TOKEN_LIMITS[0]:
        lines.append(f"serve: {{max_model_len: {max_row_tokens}}}")
    if task.kind in ("generation", "preference"):
        lines.append('decide: {structured_output: "no"}    # free text: nothing constrains the answer')
    return "\n".join(lines) + "\n"


def choose_row_tokens(longest_row_bytes: int) -> int:
    """Return the token limit for rows of up to `longest_row_bytes` bytes of UTF-8."""
    needed = longest_row_bytes / BYTES_PER_TOKEN
    return next((limit for limit in ROW_TOKEN_LIMITS if limit >= needed), ROW_TOKEN_LIMITS[-1])


def choose_answer_tokens(longest_answer: int) -> int:
    """Return the output token limit for answers of up to `longest_answer` characters."""
    needed = max(MIN_ANSWER_TOKENS, TOKENS_PER_CHARACTER * longest_answer)
    return -(-needed // 64) * 64


def _task_lines(task: InferredTask, source: RecipeSource) -> list[str]:
    """Return the lines of the section `task`."""
    instruction = make_instruction(task, source)
    origin = "the system message" if source.system.strip() else "there is no system message: describe the task"
    origin += ", and the common part of all texts" if source.preamble else ""
    if "\n" in instruction and _fits_block_scalar(instruction):
        instruction_lines = [
            "  instruction: |-    # " + origin,
            *(f"    {line}".rstrip() for line in instruction.split("\n")),
        ]
    else:
        instruction_lines = [f"  # {origin}", f"  instruction: {_quote(instruction)}"]
    reason = "".join(character if character.isprintable() else " " for character in task.reason)
    lines = ["task:", f"  kind: {task.kind}    # {reason}", *instruction_lines]
    if task.has_label_sets:
        lines.append("  labels_per_row: many")
    if task.kind == "classification":
        if task.labels:
            lines.append("  labels:    # the most frequent first; describe those with unclear names")
            lines += [f'    {_quote(label)}: ""' for label in task.labels]
        else:
            lines.append(
                f"  labels: auto    # those of the rows, {task.n_labels}; or a list, or {{label: description}}"
            )
    if task.json_schema:
        lines += ["  json_schema:    # from the answers, with headroom; add a description to unclear names"]
        lines += ["    type: object", "    properties:"]
        lines += [
            f"      {_quote(name)}: {_flow_style(schema)}" for name, schema in task.json_schema["properties"].items()
        ]
        if required := task.json_schema.get("required"):
            lines.append(
                f"    required: {_flow_style(required)}    # the others may be "
                f"{'left out' if task.omits_absent else 'null'}"
            )
        if task.omits_absent:
            lines.append("  absent: omit")
    return lines


def _data_lines(folder: Path, task: InferredTask, source: RecipeSource) -> list[str]:
    """Return the lines of the section `data`."""
    train = _quote(_relative_path(source.train, folder))
    location = f"{{path: {train}}}"
    split = "test: 0.2, validation: 0.1, calibration: 0.1"
    if source.test is not None:
        location = f"{{train: {train}, test: {_quote(_relative_path(source.test, folder))}}}"
        split = "validation: 0.1, calibration: 0.1"
    stratify = "label" if task.kind == "classification" and not task.has_label_sets else "null"
    group = f", group: {source.group}" if source.group else ""
    lines = ["data:", f"  source: {location}", f"  columns: {_flow_style(dict(source.columns))}"]
    if source.filters_system:
        lines += [
            "  # Rows with another system message are left out; without this line they are read too.",
            f"  where: {_flow_style({'messages.0.content': source.system})}",
        ]
    lines.append(f"  split: {{{split}, stratify: {stratify}{group}, seed: 17}}")
    if task.n_rare_labels and not task.labels:
        lines.append(
            f"  rare_labels: {{min_rows: {task.min_rows}, do: drop}}    # {task.n_rare_labels} answers are too "
            "rare for labels"
        )
    if source.unusable_fraction:
        allowed = min(1.0, round(1.2 * source.unusable_fraction + 0.005, 3))
        lines.append(f"  max_rejected: {allowed:g}    # {source.unusable_fraction:.1%} of the rows cannot be used")
    return lines


def _compare_lines(
    task: InferredTask, source: RecipeSource, model: IncumbentModel | None, longest_answer: int
) -> list[str]:
    """Return the lines of the section `compare`."""
    metric = DEFAULT_METRICS[task.variant]
    if task.kind == "preference":
        return [
            "compare:    # an API gives no probability of a given answer: the tuned model is compared with its base",
            f"  primary: {{system: tuned, baseline: base, metric: {metric}, margin: 0.02, alpha: 0.05}}",
        ]
    supports_decisions = task.kind == "classification" and not task.has_label_sets and task.n_labels <= 255
    default_baseline = f"openai:gpt-6-luna{':decisions' if supports_decisions else ''}"
    lines = ["compare:"]
    baseline = model.display_name if model else default_baseline
    lines.append(
        f"  primary: {{system: tuned, baseline: {_quote(baseline)}, metric: {metric}, margin: 0.02, alpha: 0.05}}"
    )
    lines.append("  baselines:")
    if model:
        lines += _incumbent_lines(source, model, longest_answer)
    if supports_decisions:
        lines += [
            "    - {provider: openai, api: decisions, model: gpt-6-luna,    # chooses among the labels",
            '       price: {input_usd_per_million: 0.1, output_usd_per_million: 0, date: "2026-10-10"}}',
        ]
    if model is None or baseline != "openai:gpt-6-luna":
        lines.append("    - {provider: openai, model: gpt-6-luna}")
    return [*lines, "  budget_usd: 5    # maximum cost of all of them"]


def _incumbent_lines(source: RecipeSource, model: IncumbentModel, longest_answer: int) -> list[str]:
    """Return the baseline entry of the incumbent model, with the messages used in its training or in the log."""
    system = [{"role": "system", "content": source.system}] if source.system.strip() else []
    user = {"role": "user", "content": f"{source.preamble.prefix}{{input}}{source.preamble.suffix}"}
    lines = [f"    - provider: {model.provider}    # {model.reason}", f"      model: {_quote(model.name)}"]
    if model.base_url:
        lines.append(f"      base_url: {_quote(model.base_url)}")
    lines += ["      messages:    # its prompt, with the text of the row in place of {input}"]
    lines += [f"        - {_flow_style(message)}" for message in (*system, user)]
    lines.append("      structured_output: false")
    family = model_families.find_family(PROVIDERS[model.provider].api_format, model.name)
    # A reasoning model needs more output tokens; the comparison knows how many.
    if family.default_effort in (None, "none") and (model.is_fine_tuned or family is not model_families.UNKNOWN):
        lines.append(f"      max_output_tokens: {choose_answer_tokens(longest_answer)}")
    if family.sampling == "yes":
        lines.append("      temperature: 0")
    if not is_loopback(parse_host(model.base_url)):
        lines.append("      # price: {input_usd_per_million: ..., output_usd_per_million: ...}    # if it is unknown")
    return lines


def _relative_path(path: Path, folder: Path) -> str:
    """Return the path relative to a folder, with forward slashes."""
    return Path(os.path.relpath(path.absolute(), folder.absolute())).as_posix()


def _fits_block_scalar(value: str) -> bool:
    """Return whether a text can be a YAML block scalar without escapes."""
    lines = value.split("\n")
    is_plain = all(line.isprintable() and line == line.rstrip() for line in lines)
    return is_plain and bool(lines[0]) and not lines[0].startswith(" ")


def _quote(value: str) -> str:
    """Return a text as YAML: plain if that is unambiguous, else in double quotes as in JSON."""
    is_plain = (
        value
        and all(character.isalnum() or character in "_" for character in value)
        and value.isascii()
        and not value[0].isdigit()
    )
    if is_plain and value.lower() not in YAML_RESERVED_WORDS:
        return value
    # YAML accepts JSON strings, but requires escapes for unprintable characters.
    return "".join(
        character if character.isprintable() else _escape_character(character)
        for character in json.dumps(value, ensure_ascii=False)
    )


def _escape_character(character: str) -> str:
    """Return the YAML escape of a character."""
    return f"\\u{ord(character):04x}" if ord(character) < 0x10000 else f"\\U{ord(character):08x}"


def _flow_style(value: object) -> str:
    """Return a value in YAML flow style."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_quote(name)}: {_flow_style(item)}" for name, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_flow_style, value)) + "]"
    return _quote(value) if isinstance(value, str) else json.dumps(value)
