"""Chat templates of every kind that published models have, in a few lines each, and bases that use them.

They are written for these tests. A model that is named is one whose template is of that kind.
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
    """A kind of template: what it writes before an answer that it asks for, before one that it has, and behind that."""

    model: str
    asked: str = "<|assistant|>\n"
    answered: str = "<|assistant|>\n"
    end: str = "<|end|>\n"
    first: str = ""
    user: str = USER + "{{ m.content }}<|end|>\n"
    eos: str = "<|end|>"
    stops: Sequence[str] = ()
    """The EOS tokens of generation_config.json."""

    @property
    def template(self) -> str:
        """Returns it as Jinja."""
        turns = "{% if m.role == 'user' %}" + self.user + "{% else %}" + self.answered + "{{ m.content }}" + self.end
        ending = "{% if add_generation_prompt %}" + self.asked + "{% endif %}"
        return self.first + "{% for m in messages %}" + turns + "{% endif %}{% endfor %}" + ending


# Learnt as the template has it.
PLAIN = TemplateKind("Qwen2.5")
HYBRID = TemplateKind(
    "Qwen3 hybrid",
    asked="<|assistant|>\n" + NO_THINKING + EMPTY_THOUGHT + "{% endif %}",
    answered="<|assistant|>\n" + EMPTY_THOUGHT,
)
THINKS_BY_DEFAULT = TemplateKind(
    "Qwen3.5 4B",
    asked="<|assistant|>\n" + NO_THINKING + EMPTY_THOUGHT + "{% else %}<think>\n{% endif %}",
    answered="<|assistant|>\n" + EMPTY_THOUGHT,
)
OTHER_SWITCH = TemplateKind("Granite 3.3", asked="<|assistant|>\n{% if thinking %}<think>\n{% endif %}")
DISAGREES_WHEN_OFF = TemplateKind("MiniCPM 5", asked="<|assistant|>\n" + NO_THINKING + EMPTY_THOUGHT + "{% endif %}")
STOP_OF_CONFIG = TemplateKind("Gemma 3", end="<end_of_turn>\n", eos="<eos>", stops=("<eos>", "<end_of_turn>"))
DATE_IN_PROMPT = TemplateKind("Llama 3.2", first="Today: {{ strftime_now('%d %b %Y') }}\n")
# Learnt with an own suffix.
SPACE_BEFORE_ANSWER = TemplateKind("Mistral v0.3", asked="<|assistant|>", answered="<|assistant|> ", end="<|end|>")
EMPTY_CHANNEL = TemplateKind("Gemma 4 31B", asked="<|assistant|>\n<|channel>thought\n<channel|>")
EMPTY_THOUGHT_IN_ANSWER = TemplateKind("Kimi K2 Thinking", answered="<|assistant|>\n<think></think>")
STOP_AFTER_END = TemplateKind("Command R7B", end="<|end_response|><|end|>")
NO_END = TemplateKind("GLM 4.5", user=USER + "{{ m.content }}", end="", eos="<eos>", stops=("<eos>", "<|user|>"))
# Refused.
ALWAYS_THINKS = TemplateKind(
    "Qwen3 Thinking-2507", asked="<|assistant|>\n<think>\n", answered="<|assistant|>\n" + EMPTY_THOUGHT
)
THINKS_AND_ANSWERS = TemplateKind(
    "Nemotron Nano v2", asked="<|assistant|>\n<think>\n", answered="<|assistant|>\n<think>\n"
)
CHANNEL = TemplateKind("gpt-oss", asked="<|assistant|>", answered="<|assistant|><|channel|>final<|message|>")
NO_STOP = TemplateKind("a base model", user="{{ m.content }}\n", asked="", answered="", end="\n")
FOREIGN_STOP = TemplateKind("Gemma 3 without a generation config", end="<end_of_turn>\n", eos="<eos>")


def write_base(folder: Path, kind: TemplateKind, weights: bool = False) -> Path:
    """Returns a base with this template: the pocket model's tokenizer with the tokens that it needs.

    `weights`: with the pocket model's weights too, and rows of new embeddings.
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
