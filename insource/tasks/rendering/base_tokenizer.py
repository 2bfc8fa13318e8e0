"""The published tokenizer of a base model, and the stop tokens of its generation config.

    tokenizer = load_base_tokenizer(recipe.model)      as AutoTokenizer does, one chat template selected, nothing pinned
    list_stop_tokens(recipe.model, tokenizer)          ["<eos>", "<end_of_turn>"]

All errors of a missing tokenizer are raised here, before the weights are loaded.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from insource.config import base_models
from insource.config.errors import RecipeError
from insource.config.schema.train import Model
from insource.tasks.rendering import hub_model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DEFAULT_TEMPLATE = "default"
GENERATION_CONFIG = "generation_config.json"
# Two names of one class, and model types for which AutoTokenizer keeps it; for others it may choose their own class.
PLAIN_TOKENIZER_CLASSES = ("TokenizersBackend", "PreTrainedTokenizerFast")
PLAIN_MODEL_TYPES = ("llama",)
TOKENIZER_FILES = {"tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "tekken.json"}


def load_base_tokenizer(model: Model) -> "PreTrainedTokenizerBase":
    """Return the tokenizer of a base model, with one chat template.

    Raises RecipeError if there is no tokenizer, or no chat template.
    """
    check_not_gguf(model)
    if Path(model.base).is_dir():
        read_model_config(model)  # reports a damaged file
    tokenizer = load_auto_tokenizer(model.base, model)
    tokenizer.chat_template = _select_template(model, tokenizer.chat_template)
    if not tokenizer.chat_template:
        raise RecipeError(
            f"model.base: the tokenizer of {model.base} has no chat template; "
            "use an instruction-tuned model, or add chat_template.jinja to the folder",
            code="INS-T006",
        )
    return tokenizer


def load_auto_tokenizer(path: str, model: Model) -> "PreTrainedTokenizerBase":
    """Return the unchanged tokenizer of a folder or repository. Raises RecipeError if there is none.

    A Mistral repository may have tekken.json beside tokenizer.json. transformers 5 would then use mistral-common's
    tokenizer, which has no chat templates.
    """
    try:
        if _is_plain_tokenizer(Path(path)):
            from transformers import PreTrainedTokenizerFast

            return PreTrainedTokenizerFast.from_pretrained(path)
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(path, revision=model.revision, mistral_format=False)
    except (OSError, ValueError, ImportError) as error:
        raise _no_tokenizer_error(model, error) from None


def read_model_config(model: Model) -> dict[str, Any] | None:
    """Return config.json of a base without importing torch; None if there is none."""
    return _read_json_object(model, "config.json")


def list_stop_tokens(model: Model, tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    """Return the tokens that may end an answer: the tokenizer's EOS, then those of the base's generation config."""
    listed = _read_generation_config(model).get("eos_token_id")
    ids = listed if isinstance(listed, list) else [listed]
    vocabulary = range(len(tokenizer))
    tokens = [
        tokenizer.eos_token,
        *(tokenizer.convert_ids_to_tokens(token_id) for token_id in ids if token_id in vocabulary),
    ]
    return list(dict.fromkeys(token for token in tokens if token))


def check_not_gguf(model: Model) -> None:
    """Raise RecipeError if the folder of a base has its weights as GGUF and not as safetensors.

    A recipe names the GGUF file, which is dequantized first (insource/tracking/base_models/gguf_model.py).
    """
    folder = Path(model.base)
    ggufs = base_models.find_gguf_weights(folder) if folder.is_dir() else []
    if ggufs:
        raise RecipeError(
            f"model.base: {folder} has its weights as GGUF ({', '.join(path.name for path in ggufs[:3])}); name the "
            f"file itself, model.base={ggufs[0]}, or a folder with config.json, *.safetensors and tokenizer.json",
            code="INS-T002",
        )


def _is_plain_tokenizer(folder: Path) -> bool:
    """Return whether AutoTokenizer would choose PreTrainedTokenizerFast for a folder, by the table of its model types.

    Importing AutoTokenizer imports torch, scikit-learn and SciPy: 5.6 s of processor time in each process instead of
    0.9 s (2 cores of an AMD EPYC with other load, 2026-11-30).
    """
    try:
        tokenizer_config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        config_path = folder / "config.json"
        config = json.loads(config_path.read_text(encoding="utf-8")) if config_path.is_file() else {}
    except (OSError, ValueError):
        return False
    if not isinstance(tokenizer_config, dict) or not isinstance(config, dict):
        return False
    return (
        tokenizer_config.get("tokenizer_class") in PLAIN_TOKENIZER_CLASSES
        and "auto_map" not in tokenizer_config
        and config.get("model_type", "") in ("", *PLAIN_MODEL_TYPES)
    )


def _select_template(model: Model, template: object) -> Any:
    """Return the template for conversations without tools, if the tokenizer has several named templates."""
    if not isinstance(template, dict):
        return template
    if DEFAULT_TEMPLATE in template:
        return template[DEFAULT_TEMPLATE]
    raise RecipeError(
        f"model.base: the tokenizer of {model.base} has several chat templates and none is named {DEFAULT_TEMPLATE!r}: "
        f"{', '.join(sorted(template))}. Copy the base to a folder and save the right one as chat_template.jinja there",
        code="INS-T006",
    )


def _no_tokenizer_error(model: Model, error: Exception) -> RecipeError:
    names = hub_model.list_files(model)
    if ggufs := sorted(name for name in names or () if name.endswith(base_models.GGUF_SUFFIX)):
        return RecipeError(
            f"model.base: {model.base} has its weights as GGUF; fetch one file (`hf download {model.base} {ggufs[0]}`) "
            "and give its path, or use the repository that it was converted from",
            code="INS-T002",
        )
    if names is not None and not names & TOKENIZER_FILES:
        return RecipeError(
            f"model.base: {model.base} has no tokenizer (no tokenizer.json); copy tokenizer.json, "
            "tokenizer_config.json and chat_template.jinja of the published model there",
            code="INS-T002",
        )
    return RecipeError(hub_model.not_found_message(model, error), code="INS-T001")


def _read_generation_config(model: Model) -> dict[str, Any]:
    """Return generation_config.json of a base, or config.json if there is none, as vLLM does."""
    generation_config = _read_json_object(model, GENERATION_CONFIG)
    return (generation_config if generation_config is not None else read_model_config(model)) or {}


def _read_json_object(model: Model, name: str) -> dict[str, Any] | None:
    """Return a JSON file of a base, None if there is none. Raise RecipeError if it is damaged."""
    if (path := hub_model.find_file(model, name)) is None:
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        value, problem = None, str(error)
    else:
        problem = "it is no JSON object"
    if isinstance(value, dict):
        return value
    raise RecipeError(
        f"model.base: {name} of {model.base} cannot be read: {problem}; copy that of the published model there",
        code="INS-T002",
    )
