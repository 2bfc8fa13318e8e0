"""Chat templates of each kind that published models have, in a few lines each, and bases with them.

They were written for these tests. `model` is an example of a model with a template of that kind.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from insource.config.base_models import POCKET

EMPTY_THOUGHT = "<think>\n\n</think>\n\n"
NO_THINKING = "{% if enable_thinking is defined and enable_thinking is false %}"
USER = "<|user|>\n"


@dataclass(frozen=True)
class TemplateKind:
    """A kind of template: its text before a requested answer, before a given answer, and after an answer."""

    model: str
    generation_prompt: str = "<|assistant|>\n"
    before_answer: str = "<|assistant|>\n"
    after_answer: str = "<|end|>\n"
    preamble: str = ""
    user_turn: str = USER + "{{ m.content }}<|end|>\n"
    eos: str = "<|end|>"
    stops: Sequence[str] = ()
    """The EOS tokens of generation_config.json."""

    @property
    def template(self) -> str:
        """Return the template in Jinja."""
        turns = (
            "{% if m.role == 'user' %}"
            + self.user_turn
            + "{% else %}"
            + self.before_answer
            + "{{ m.content }}"
            + self.after_answer
        )
        ending = "{% if add_generation_prompt %}" + self.generation_prompt + "{% endif %}"
        return self.preamble + "{% for m in messages %}" + turns + "{% endif %}{% endfor %}" + ending


# Training uses the template's own rendering.
PLAIN = TemplateKind("Qwen2.5")
HYBRID = TemplateKind(
    "Qwen3 hybrid",
    generation_prompt="<|assistant|>\n" + NO_THINKING + EMPTY_THOUGHT + "{% endif %}",
    before_answer="<|assistant|>\n" + EMPTY_THOUGHT,
)
THINKS_BY_DEFAULT = TemplateKind(
    "Qwen3.5 4B",
    generation_prompt="<|assistant|>\n" + NO_THINKING + EMPTY_THOUGHT + "{% else %}<think>\n{% endif %}",
    before_answer="<|assistant|>\n" + EMPTY_THOUGHT,
)
OTHER_SWITCH = TemplateKind("Granite 3.3", generation_prompt="<|assistant|>\n{% if thinking %}<think>\n{% endif %}")
DISAGREES_WHEN_OFF = TemplateKind(
    "MiniCPM 5", generation_prompt="<|assistant|>\n" + NO_THINKING + EMPTY_THOUGHT + "{% endif %}"
)
STOP_OF_CONFIG = TemplateKind("Gemma 3", after_answer="<end_of_turn>\n", eos="<eos>", stops=("<eos>", "<end_of_turn>"))
DATE_IN_PROMPT = TemplateKind("Llama 3.2", preamble="Today: {{ strftime_now('%d %b %Y') }}\n")
DATE_OPTION = TemplateKind(
    "Llama 3.1",
    preamble="{% if date_string is not defined %}{% set date_string = '26 Jul 2024' %}{% endif %}{{ date_string }}\n",
)
EFFORT_OPTION = TemplateKind("Qwen3.8", preamble="Effort: {{ reasoning_effort or 'medium' }}\n")
ONLY_EFFORT = TemplateKind(
    "Command A", generation_prompt="<|assistant|>\n{% if reasoning_effort != 'none' %}<think>\n{% endif %}"
)
ONLY_MODE = TemplateKind(
    "MiniMax-M3",
    generation_prompt="<|assistant|>\n{% if thinking_mode == 'disabled' %}</think>{% endif %}",
    before_answer="<|assistant|>\n</think>",
)
SYSTEM_OPTION = TemplateKind(
    "Mistral Nemo",
    preamble="{% if messages[0].role == 'system' %}{% set system_message = messages[0].content %}{% endif %}",
    user_turn=USER + "{% if system_message is defined %}{{ system_message }}\n{% endif %}{{ m.content }}<|end|>\n",
)
# Training uses an own suffix (assistant_turn.py).
SPACE_BEFORE_ANSWER = TemplateKind(
    "Mistral v0.3", generation_prompt="<|assistant|>", before_answer="<|assistant|> ", after_answer="<|end|>"
)
EMPTY_CHANNEL = TemplateKind("Gemma 4 31B", generation_prompt="<|assistant|>\n<|channel>thought\n<channel|>")
EMPTY_THOUGHT_IN_ANSWER = TemplateKind("Kimi K2 Thinking", before_answer="<|assistant|>\n<think></think>")
STOP_AFTER_END = TemplateKind("Command R7B", after_answer="<|end_response|><|end|>")
NO_END = TemplateKind(
    "GLM 4.5", user_turn=USER + "{{ m.content }}", after_answer="", eos="<eos>", stops=("<eos>", "<|user|>")
)
# Refused.
ALWAYS_THINKS = TemplateKind(
    "Qwen3 Thinking-2507", generation_prompt="<|assistant|>\n<think>\n", before_answer="<|assistant|>\n" + EMPTY_THOUGHT
)
THINKS_AND_ANSWERS = TemplateKind(
    "Nemotron Nano v2", generation_prompt="<|assistant|>\n<think>\n", before_answer="<|assistant|>\n<think>\n"
)
CHANNEL = TemplateKind(
    "gpt-oss", generation_prompt="<|assistant|>", before_answer="<|assistant|><|channel|>final<|message|>"
)
CHANNEL_WITHOUT_THOUGHT = TemplateKind(
    "Cohere2 MoE",
    generation_prompt="<|assistant|>\n<think>{% if reasoning_effort == 'none' %}</think>{% endif %}",
    before_answer="<|assistant|>\n<|text|>",
)
ONLY_PARTS = TemplateKind("SmolVLM", user_turn=USER + "{% for part in m.content %}{{ part.text }}{% endfor %}<|end|>\n")
NO_GENERATION_PROMPT = TemplateKind("a template of a base model", generation_prompt="")
NEEDS_SYSTEM = TemplateKind(
    "x", preamble="{% if messages[0].role != 'system' %}{{ raise_exception('no system message') }}{% endif %}"
)
NO_STOP = TemplateKind(
    "a base model", user_turn="{{ m.content }}\n", generation_prompt="", before_answer="", after_answer="\n"
)
FOREIGN_STOP = TemplateKind("Gemma 3 without a generation config", after_answer="<end_of_turn>\n", eos="<eos>")


def write_base(folder: Path, kind: TemplateKind, weights: bool = False) -> Path:
    """Write a base with this template: the pocket model's tokenizer with the tokens of the template. Return its folder.

    With `weights`, the folder also has the pocket model's weights, with embeddings for the new tokens.
    """
    from transformers import AddedToken, AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(POCKET)
    special = [kind.eos, *kind.stops, "<|user|>", "<|assistant|>", "<end_of_turn>", "<|end_response|>"]
    special += ["<|channel|>", "<|message|>", "<|channel>", "<channel|>"]
    added = [AddedToken(token, special=True, normalized=False) for token in dict.fromkeys(special)]
    tokenizer.add_tokens([*added, *(AddedToken(token, special=False) for token in ("<think>", "</think>"))])
    tokenizer.eos_token, tokenizer.chat_template = kind.eos, kind.template
    tokenizer.save_pretrained(folder)
    ids = [tokenizer.convert_tokens_to_ids(token) for token in kind.stops or (kind.eos,)]
    if weights:
        model = AutoModelForCausalLM.from_pretrained(POCKET, dtype="float32")
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        model.save_pretrained(folder)
    else:
        config = json.loads((POCKET / "config.json").read_text(encoding="utf-8")) | {"vocab_size": len(tokenizer)}
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ids}), encoding="utf-8")
    return folder
