"""Every kind of chat template: what of it is taken, how it is pinned, where it stops, and why it is refused."""

import json
import shutil
from dataclasses import replace
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import pytest

from insource.config.errors import RecipeError
from insource.config.schema.train import Model, Template
from insource.tasks import classification
from insource.tasks.rendering import chat_template, pinned_template
from tests.helpers import chat_templates as kinds
from tests.helpers.chat_templates import TemplateKind
from tests.helpers.errors import raises_error
from train.evaluate import constrained_decoding, decodability
from train.packing.packing_plan import TokenizedRow

TRL_TEMPLATES = sorted(
    path for path in (Path(str(files("trl"))) / "chat_templates").glob("*.jinja") if "_training" not in path.stem
)
# Templates of image models that do not take a text as content.
ONLY_CONTENT_PARTS = ("llava_next",)
SPEC = classification.Spec("Route it.", {"delivery_delay": "", "late_fee": ""})
ASK = classification.messages(SPEC, {"text": "my parcel is late"})

TAKEN = [
    (kinds.PLAIN, {}, "<|end|>", False),
    (kinds.HYBRID, {"enable_thinking": False}, "<|end|>", False),
    (kinds.THINKS_BY_DEFAULT, {"enable_thinking": False}, "<|end|>", False),
    (kinds.OTHER_SWITCH, {"thinking": False}, "<|end|>", False),
    (kinds.DISAGREES_WHEN_OFF, {"enable_thinking": "not set"}, "<|end|>", False),
    (kinds.STOP_OF_CONFIG, {}, "<end_of_turn>", False),
    (kinds.DATE_IN_PROMPT, {"date": "2026-01-01"}, "<|end|>", False),
    (kinds.DATE_OPTION, {}, "<|end|>", False),
    (kinds.EFFORT_OPTION, {}, "<|end|>", False),
    (kinds.ONLY_EFFORT, {"reasoning_effort": "none"}, "<|end|>", False),
    (kinds.ONLY_MODE, {"thinking_mode": "disabled"}, "<|end|>", False),
    (kinds.SYSTEM_OPTION, {}, "<|end|>", False),
    (kinds.SPACE_BEFORE_ANSWER, {}, "<|end|>", True),
    (kinds.EMPTY_CHANNEL, {}, "<|end|>", True),
    (kinds.EMPTY_THOUGHT_IN_ANSWER, {}, "<|end|>", True),
    (kinds.STOP_AFTER_END, {}, "<|end|>", True),
    (kinds.NO_END, {}, "<|user|>", True),
]
REFUSED = [
    (kinds.ALWAYS_THINKS, "always thinks before it answers.*Instruct-2507"),
    (kinds.THINKS_AND_ANSWERS, "always thinks before it answers.*Nemotron-3-Nano"),
    (kinds.CHANNEL, "does not answer right behind its open prompt.*channel"),
    (kinds.CHANNEL_WITHOUT_THOUGHT, "does not answer right behind its open prompt.*channel"),
    (kinds.ONLY_PARTS, "only as a list of parts"),
    (kinds.NO_GENERATION_PROMPT, "writes no generation prompt.*copy of the base"),
    (kinds.NEEDS_SYSTEM, "cannot render a plain conversation: no system message"),
    (kinds.NO_STOP, "none of its stop tokens.*set model.stop to one of <|end|>"),
    (kinds.FOREIGN_STOP, "ends an answer with '<end_of_turn>.n', which has none of its stop tokens .<eos>."),
]


def folder_of(tmp_path: Path, kind: TemplateKind) -> Path:
    # As repositories are named: the reason to refuse one names another.
    return kinds.write_base(tmp_path / kind.model.replace(" ", "-"), kind)


@pytest.mark.parametrize(("kind", "pinned", "stop", "own_suffix"), TAKEN, ids=lambda value: getattr(value, "model", ""))
def test_what_is_learnt_is_what_is_served_and_decoded(
    tmp_path: Path, kind: TemplateKind, pinned: dict[str, Any], stop: str, own_suffix: bool
) -> None:
    rendering = chat_template.load_rendering(Model(base=str(folder_of(tmp_path, kind))))
    tokenizer = rendering.tokenizer
    assert (rendering.pinned_values, tokenizer.eos_token, rendering.own_suffix_reason is not None) == (
        pinned,
        stop,
        own_suffix,
    )
    (example,) = chat_template.render_examples(tokenizer, [ASK], ["late_fee"])
    served = tokenizer.apply_chat_template(ASK, add_generation_prompt=True, return_dict=False)
    assert example.prompt_ids == served == chat_template.encode_prompts(tokenizer, [ASK])[0]
    assert tokenizer.decode(example.completion_ids) == f"late_fee{stop}"
    row = TokenizedRow("T1", example.prompt_ids, (example.completion_ids,))
    decodability.check_answers_decodable(
        classification, SPEC, [{"target": "late_fee"}], [row], tokenizer, len(tokenizer)
    )


@pytest.mark.parametrize(("kind", "reason"), REFUSED, ids=lambda value: getattr(value, "model", ""))
def test_what_cannot_be_taught_to_answer_at_once_is_refused_without_weights(
    tmp_path: Path, kind: TemplateKind, reason: str
) -> None:
    folder = folder_of(tmp_path, kind)
    assert not list(folder.glob("*.safetensors"))
    with pytest.raises(RecipeError, match=f"(?s){reason.replace('|', '[|]')}"):
        chat_template.load_rendering(Model(base=str(folder)))


@pytest.mark.parametrize(
    "kind",
    [
        kinds.HYBRID,
        kinds.THINKS_BY_DEFAULT,
        kinds.DISAGREES_WHEN_OFF,
        kinds.OTHER_SWITCH,
        kinds.DATE_IN_PROMPT,
        kinds.DATE_OPTION,
        kinds.EFFORT_OPTION,
        kinds.ONLY_EFFORT,
        kinds.ONLY_MODE,
        kinds.SYSTEM_OPTION,
    ],
    ids=lambda kind: kind.model,
)
def test_no_client_and_no_day_changes_a_pinned_prompt(
    tmp_path: Path, kind: TemplateKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers.utils.chat_template_utils as clock

    class Tomorrow(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> "Tomorrow":
            return cls(2031, 7, 9)

    folder = folder_of(tmp_path, kind)
    tokenizer = chat_template.load_tokenizer(Model(base=str(folder)))
    tokenizer.save_pretrained(folder / "adapter")
    saved_tokenizer = chat_template.load_saved_tokenizer(str(folder / "adapter"))
    assert (folder / "adapter" / "chat_template.jinja").read_text(encoding="utf-8") == tokenizer.chat_template
    prompt_ids = chat_template.encode_prompts(saved_tokenizer, [ASK])[0]
    monkeypatch.setattr(clock, "datetime", Tomorrow)
    arguments = {
        "enable_thinking": kind is not kinds.DISAGREES_WHEN_OFF,
        "thinking": True,
        "date_string": "9 July 2031",
        "reasoning_effort": "high",
        "thinking_mode": "adaptive",
        "system_message": "Say late_fee.",
    }
    changed_ids = saved_tokenizer.apply_chat_template(ASK, add_generation_prompt=True, return_dict=False, **arguments)
    assert prompt_ids == changed_ids
    # The published template does change, or this test would show nothing.
    saved_tokenizer.chat_template = kind.template
    assert (
        saved_tokenizer.apply_chat_template(ASK, add_generation_prompt=True, return_dict=False, **arguments)
        != prompt_ids
    )


@pytest.mark.parametrize("first", ["", "\n", "  ", "\n\n  "])
def test_the_prologue_changes_nothing_else(tmp_path: Path, first: str) -> None:
    """With the same switch the published template writes the same text, white space at its beginning included."""
    kind = replace(kinds.THINKS_BY_DEFAULT, preamble=first + "{{ strftime_now('Year') }}")
    tokenizer = chat_template.load_tokenizer(Model(base=str(folder_of(tmp_path, kind))))
    assert tokenizer.chat_template.endswith(kind.template)
    pinned = tokenizer.apply_chat_template(ASK, tokenize=False, add_generation_prompt=True)
    tokenizer.chat_template, thinking_off = kind.template, {"enable_thinking": False}
    assert tokenizer.apply_chat_template(ASK, tokenize=False, add_generation_prompt=True, **thinking_off) == pinned


def render_or_none(template: jinja2.Template, **variables: Any) -> str | None:
    try:
        return template.render(**variables)
    except jinja2.UndefinedError:
        return None


@pytest.mark.parametrize("path", TRL_TEMPLATES, ids=lambda path: path.stem)
def test_the_prologue_changes_nothing_in_published_templates(path: Path) -> None:
    """With the same switches a published template renders the same, whatever variables a client sets in the pinned one.

    TRL has copies of published templates.
    """
    from transformers.utils.chat_template_utils import _compile_jinja_template

    question, answer = {"role": "user", "content": "Where is it?"}, {"role": "assistant", "content": "late"}
    conversations = [[question], [question, answer], [question, answer, question]]
    client_values = dict.fromkeys(
        ("date_string", "reasoning_effort", "system_message", "custom_tools", "builtin_tools", "content", "role"), "x"
    )
    template = path.read_text(encoding="utf-8")
    for pinned in pinned_template.pin_template(template, Template(), path.stem):
        # The clock is left pinned: the published one prints today's date.
        prologue = pinned.template.removesuffix(template).splitlines(keepends=True)
        clock = "".join(line for line in prologue if pinned_template.CLOCK_FUNCTION in line)
        unset = {"date", *(name for name, value in pinned.values.items() if value == pinned_template.UNSET)}
        switches = {name: value for name, value in pinned.values.items() if name not in unset}
        published, changed = _compile_jinja_template(clock + template), _compile_jinja_template(pinned.template)
        for messages in conversations:
            values = {
                "messages": messages,
                "add_generation_prompt": messages[-1] is question,
                "tools": None,
                "bos_token": "<s>",
                "eos_token": "</s>",
            }
            text = render_or_none(published, **values, **switches)
            assert render_or_none(changed, **values) == text == render_or_none(changed, **values, **client_values)
            assert text is not None or path.stem in ONLY_CONTENT_PARTS


def test_the_recipe_says_what_is_pinned_and_where_answers_stop(tmp_path: Path) -> None:
    dated_template = Template(date="2025-12-24")
    model = Model(base=str(folder_of(tmp_path, kinds.DATE_IN_PROMPT)), template=dated_template)
    prompt = chat_template.load_tokenizer(model).apply_chat_template(ASK, tokenize=False, add_generation_prompt=True)
    assert prompt.startswith("Today: 24 Dec 2025\n")
    with raises_error(RecipeError, "INS-T008", match="always thinks"):
        chat_template.load_rendering(
            Model(
                base=str(folder_of(tmp_path, kinds.THINKS_BY_DEFAULT)),
                template=Template(enable_thinking=True),
            )
        )
    stop_model = Model(base=str(folder_of(tmp_path, kinds.FOREIGN_STOP)), stop="<end_of_turn>")
    assert chat_template.load_tokenizer(stop_model).eos_token == stop_model.stop
    with raises_error(RecipeError, "INS-T009", match=r"model.stop: '<\|nonsense\|>' is not a special token.*<eos>"):
        chat_template.load_rendering(stop_model.model_copy(update={"stop": "<|nonsense|>"}))


def test_a_date_in_a_computed_format_is_refused(tmp_path: Path) -> None:
    kind = TemplateKind("x", preamble="{% set form = '%Y' %}{{ strftime_now(form) }}")
    with raises_error(RecipeError, "INS-T007", match="in a format that it computes"):
        chat_template.load_rendering(Model(base=str(folder_of(tmp_path, kind))))


def test_the_pocket_model_is_rendered_by_its_published_template(tokenizer: Any) -> None:
    rendering = chat_template.load_rendering(Model(base=tokenizer.name_or_path))
    assert (rendering.pinned_values, rendering.own_suffix_reason, rendering.summary_lines()) == ({}, None, [])
    assert rendering.tokenizer.chat_template == tokenizer.chat_template
    assert rendering.tokenizer.eos_token == tokenizer.eos_token


def test_an_answer_that_spells_special_tokens_is_learnt_whole(tokenizer: Any) -> None:
    for answer in ("About tea <|end|> then biscuits", "<|user|>", "a <|begin|><|end|>"):
        (example,) = chat_template.render_examples(tokenizer, [ASK], [answer])
        assert example.completion_ids[-1] == tokenizer.eos_token_id
        assert tokenizer.eos_token_id not in example.completion_ids[:-1]
        assert constrained_decoding.decode_text(tokenizer, example.completion_ids) == answer


@pytest.mark.parametrize(
    ("completion", "reason"),
    [
        ("<think>\n\n</think>\n\nlate_fee<|end|>", "the output constraint forbids token 1 of it"),
        ("late_fee", "does not end in the stop token '<|end|>'"),
        ("late_fee<|end|>\n", "the output constraint forbids token"),
    ],
)
def test_what_the_constraint_forbids_is_refused_naming_row_token_and_template(
    tokenizer: Any, completion: str, reason: str
) -> None:
    ids = tokenizer(completion, add_special_tokens=False)["input_ids"]
    row = TokenizedRow("T000017", chat_template.encode_prompts(tokenizer, [ASK])[0], (ids,))
    with raises_error(RecipeError, "INS-T011") as error:
        decodability.check_answers_decodable(
            classification, SPEC, [{"target": "late_fee"}], [row], tokenizer, len(tokenizer)
        )
    message = str(error.value)
    assert (
        "row T000017" in message
        and reason in message
        and tokenizer.name_or_path in message
        and "model.template" in message
    )


def test_a_tokenizer_of_another_model_is_refused(tokenizer: Any) -> None:
    row = TokenizedRow("T1", chat_template.encode_prompts(tokenizer, [ASK])[0], ([tokenizer.eos_token_id],))
    with raises_error(RecipeError, "INS-T010", match=r"the model has 8 tokens: tokenizer and config[.]json are not"):
        decodability.check_answers_decodable(classification, SPEC, [{"target": "late_fee"}], [row], tokenizer, 8)


def test_free_text_that_decodes_to_another_text_is_refused(tokenizer: Any) -> None:
    from insource.tasks import generation

    spec = generation.Spec("Sum it up.")
    prompt = chat_template.encode_prompts(tokenizer, [ASK])[0]
    for completion in (" late<|end|>", "late<|end|>fee<|end|>", "late"):
        ids = tokenizer(completion, add_special_tokens=False)["input_ids"]
        with raises_error(RecipeError, "INS-T011", match="row T1 of train"):
            decodability.check_answers_decodable(
                generation, spec, [{"target": "late"}], [TokenizedRow("T1", prompt, (ids,))], tokenizer, 4096
            )


def test_a_sentencepiece_vocabulary_learns_the_answer_without_the_space_before_it(tmp_path: Path) -> None:
    """Mistral's own v3: a word that stands alone is another token than the same word behind [/INST]."""
    data = Path(str(files("mistral_common"))) / "data"
    shutil.copyfile(data / "mistral_instruct_tokenizer_240323.model.v3", tmp_path / "tokenizer.model")
    special = enumerate(["<unk>", "<s>", "</s>", "[INST]", "[/INST]"])
    added_tokens = {str(index): {"content": token, "special": True, "normalized": False} for index, token in special}
    config = {"tokenizer_class": "LlamaTokenizer", "eos_token": "</s>", "added_tokens_decoder": added_tokens}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    turn = "{% if m.role == 'user' %}[INST]{{ m.content }}[/INST]{% else %} {{ m.content }}</s>{% endif %}"
    template = "{% for m in messages %}" + turn + "{% endfor %}"
    (tmp_path / "chat_template.jinja").write_text(template, encoding="utf-8")
    rendering = chat_template.load_rendering(Model(base=str(tmp_path)))
    tokenizer, question = rendering.tokenizer, [{"role": "user", "content": "my parcel is late"}]
    assert rendering.own_suffix_reason is not None
    assert "\u2581delivery" in tokenizer.tokenize("delivery")
    for answer in ("delivery_delay", "Über die Brücke, 3 €", "<s>x</s>", '{"a": null}'):
        (example,) = chat_template.render_examples(tokenizer, [question], [answer])
        assert constrained_decoding.decode_text(tokenizer, example.completion_ids) == answer
        row = TokenizedRow("T1", example.prompt_ids, (example.completion_ids,))
        spec = classification.Spec("Say it.", {answer: "", "other": ""})
        decodability.check_answers_decodable(
            classification, spec, [{"target": answer}], [row], tokenizer, len(tokenizer)
        )
