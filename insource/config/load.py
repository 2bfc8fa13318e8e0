"""From YAML to a Recipe: schema defaults < recipe < hardware file < SET, every mistake reported at once.

    loaded = load("classifier", ["train.learning_rate=1e-4"])
    loaded.recipe.train.learning_rate    # 0.0001
    loaded.replaced                      # what hardware file and SET changed of what the recipe says

A mistake is reported with file, line, dotted key, what was given, what would do and the nearest right spelling.
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from datetime import date
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.scalarbool import ScalarBoolean

from insource.config import base_models, hardware
from insource.config.error_messages import MISSING, KeyPath, describe_errors
from insource.config.errors import RecipeError
from insource.config.recipe import Recipe

RECIPES = Path(__file__).parents[2] / "recipes"
POCKET = base_models.POCKET
# W&B allows 128 characters, with what is added to a name.
MAX_NAME_CHARACTERS = 100
SOURCE_KEYS = ("path", "train", "validation", "calibration", "test")


@dataclass(frozen=True)
class SourceLocation:
    """Where a value was written."""

    file: str
    line: int | None
    folder: Path

    def __str__(self) -> str:
        return self.file if self.line is None else f"{self.file}:{self.line}"


@dataclass(frozen=True)
class LoadedRecipe:
    """A recipe with where it came from."""

    recipe: Recipe
    name: str
    path: Path
    hardware: str
    hardware_reason: str
    replaced: tuple[str, ...]
    """One line for each value of the recipe that the hardware file or SET replaced by another."""


@dataclass
class ConfigLayer:
    """Plain values of one or more layers, and where each of them was written."""

    values: dict[str, Any]
    places: dict[KeyPath, SourceLocation]


def load(name_or_path: str, overrides: Sequence[str] = (), hardware_name: str | None = None) -> LoadedRecipe:
    """Returns the recipe of that name in `recipes/`, or at that path.

    `overrides` are `dotted.key=value` with a YAML value; `hardware_name` a file of `recipes/hardware/`, by default
    what this machine has. Raises RecipeError naming every mistake of all layers at once.
    """
    path = find_recipe(name_or_path)
    tree = read_layer(path)
    reason = "asked for" if hardware_name else ""
    if not hardware_name:
        hardware_name, reason = hardware.detect()
    asked = _parse_overrides(overrides)
    hardware_name, reason = hardware.select_for_base(hardware_name, reason, _get_base(asked) or _get_base(tree))
    machine = read_layer(_find_hardware_file(hardware_name))
    _apply_named_overrides(machine, "bases", _get_base(asked) or _get_base(machine))
    _apply_named_overrides(machine, "kinds", _get_value(tree, "task", "kind"))
    # What the hardware file replaces is checked too: a recipe is right or wrong on every machine alike.
    alone = deepcopy(tree)
    _merge_layer(alone, asked)
    # But for `accelerate`: what SET says there, it says to the hardware file.
    mistakes = {key: told for key, told in _find_mistakes(alone) if told != MISSING and key[:1] != ("accelerate",)}
    replaced = _merge_layer(tree, machine) + _merge_layer(tree, asked)
    mistakes = dict(_find_mistakes(tree)) | mistakes
    if mistakes:
        raise RecipeError(_format_mistakes(path, mistakes, tree.places | alone.places))
    recipe = Recipe.model_validate(tree.values)
    return LoadedRecipe(
        _resolve_paths(recipe, tree.places, path), make_recipe_name(path), path, hardware_name, reason, tuple(replaced)
    )


def describe_precedence(loaded: LoadedRecipe) -> list[str]:
    """Returns the first lines of a stage: on which hardware, and each value of the recipe that is not in force."""
    first = f"recipe    {loaded.name} on hardware {loaded.hardware}: {loaded.hardware_reason}"
    return [first, *(f"          {told}" for told in loaded.replaced)]


def make_recipe_name(path: Path) -> str:
    """Returns the name of a recipe: its file's, in the letters that names of served models and W&B artifacts may have.

    tickets.yaml: tickets; "my tickets.yaml": my-tickets; "tickets_lr=1e-4.yaml": tickets_lr-1e-4.
    """
    plain = unicodedata.normalize("NFKD", path.stem).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", plain).strip("-.")[:MAX_NAME_CHARACTERS] or "recipe"


def find_recipe(name_or_path: str) -> Path:
    """Returns the recipe's file. Raises RecipeError with the nearest name there is."""
    given = Path(name_or_path)
    if given.suffix in (".yaml", ".yml") or len(given.parts) > 1:
        if given.is_file():
            return given.resolve()
        raise RecipeError(f"{name_or_path}: there is no such recipe file")
    names = sorted(path.stem for path in RECIPES.glob("*.yaml"))
    if name_or_path in names:
        return RECIPES / f"{name_or_path}.yaml"
    near = get_close_matches(name_or_path, names, 1)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise RecipeError(
        f"There is no recipe {name_or_path!r}.{hint}\n"
        f"  recipes/ has: {', '.join(names)}; the path of any other YAML file will do as well."
    )


def read_layer(path: Path) -> ConfigLayer:
    """Returns the values of a YAML file with their lines. Raises RecipeError where it is not a YAML mapping."""
    shown = _display_path(path)
    try:
        document = YAML().load(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise RecipeError(f"{shown}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        problem = (error.problem or "not YAML").splitlines()[0]
        raise RecipeError(f"{shown}{line}: {problem}") from None
    except (YAMLError, ValueError) as error:  # ValueError: a date that no calendar has, such as 2026-13-01
        raise RecipeError(f"{shown}: {str(error).splitlines()[0]}") from None
    if not isinstance(document, CommentedMap):
        raise RecipeError(
            f"{shown}: a recipe is a mapping with task, data and model; this is {_describe_type(document)}"
        )
    places = {key: SourceLocation(shown, line, path.parent) for key, line in _iterate_lines(document)}
    return ConfigLayer(_to_plain(document), places)


def _find_mistakes(tree: ConfigLayer) -> list[tuple[KeyPath, str]]:
    try:
        Recipe.model_validate(tree.values)
    except ValidationError as error:
        return describe_errors(error, tree.values)
    return []


def _find_hardware_file(name: str) -> Path:
    names = hardware.list_names()
    if name in names:
        return hardware.HARDWARE_DIR / f"{name}.yaml"
    near = get_close_matches(name, names, 1)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise RecipeError(f"There is no hardware {name!r}.{hint}\n  recipes/hardware/ has: {', '.join(names)}")


def _parse_overrides(overrides: Sequence[str]) -> ConfigLayer:
    tree = ConfigLayer({}, {})
    for override in overrides:
        dotted, equals, text = override.partition("=")
        key = tuple(dotted.split("."))
        if not equals or not all(key):
            raise RecipeError(f"SET {override!r}: write dotted.key=value, such as train.learning_rate=1e-4")
        try:
            value = _to_plain(YAML().load(text))
        except (YAMLError, ValueError):
            raise RecipeError(f"SET {override}: {text!r} is not a YAML value; put quotes around text") from None
        _merge_layer(tree, ConfigLayer(_nest(key, value), {key: SourceLocation(f"SET {dotted}", None, Path.cwd())}))
    return tree


def _merge_layer(tree: ConfigLayer, layer: ConfigLayer) -> list[str]:
    """Lays a layer over the tree in place: mappings merge, all else is replaced. Returns what it replaced, told."""
    replaced = []
    for key, value in _flatten(layer.values):
        below = tree.values
        for at, part in enumerate(key[:-1]):
            if not isinstance(below.get(part), dict):
                below[part] = {}
                tree.places.setdefault(key[: at + 1], _get_location(key, layer))
            below = below[part]
        if key[-1] in below and below[key[-1]] != value:
            replaced.append(
                f"{'.'.join(key)}: {_abbreviate(value)} by {_get_location(key, layer).file}, not "
                f"{_abbreviate(below[key[-1]])}"
            )
        below[key[-1]] = value
    tree.places.update(layer.places)
    return replaced


def _apply_named_overrides(machine: ConfigLayer, section: str, name: Any) -> None:
    """Lays what a section of a hardware file (`bases`, `kinds`) says of a name over the rest of the file, in place."""
    named = machine.values.pop(section, {})
    if isinstance(name, str) and name in named:
        places = {key[2:]: place for key, place in machine.places.items() if key[:2] == (section, name)}
        _merge_layer(machine, ConfigLayer(named[name], places))


def _get_base(tree: ConfigLayer) -> Any:
    return _get_value(tree, "model", "base")


def _get_value(tree: ConfigLayer, section: str, key: str) -> Any:
    """Returns what a layer says of a key, None where it does not."""
    found = tree.values.get(section)
    return found.get(key) if isinstance(found, dict) else None


def _get_location(key: KeyPath, layer: ConfigLayer) -> SourceLocation:
    """Where a value of a layer was written: a layer has no value without a place."""
    place = _find_location(key, layer.places)
    assert place is not None
    return place


def _resolve_paths(recipe: Recipe, places: dict[KeyPath, SourceLocation], path: Path) -> Recipe:
    """Makes paths absolute: those of a file start at its folder, those of SET at the current one."""

    def below(text: str, *key: str) -> Path:
        place = _find_location(key, places)
        return (place.folder if place else path.parent) / Path(text).expanduser()

    def absolute(text: str, *key: str) -> str:
        return str(below(text, *key).resolve())

    source = recipe.data.source
    found: dict[str, Any] = {
        name: absolute(value, "data", "source", name)
        for name in SOURCE_KEYS
        if (value := getattr(source, name)) is not None
    }
    if source.paths is not None:
        found["paths"] = [absolute(value, "data", "source", "paths") for value in source.paths]
    try:
        base = base_models.resolve_base(recipe.model.base, below(recipe.model.base, "model", "base"))
    except RecipeError as error:
        raise RecipeError(f"{_find_location(('model', 'base'), places)}: {error}") from None
    baselines = [
        one if one.path is None else one.model_copy(update={"path": absolute(one.path, "compare", "baselines")})
        for one in recipe.compare.baselines
    ]
    return recipe.model_copy(
        update={
            "data": recipe.data.model_copy(update={"source": source.model_copy(update=found)}),
            "model": recipe.model.model_copy(update={"base": base}),
            "compare": recipe.compare.model_copy(update={"baselines": baselines}),
        }
    )


def _format_mistakes(path: Path, mistakes: dict[KeyPath, str], places: dict[KeyPath, SourceLocation]) -> str:
    told = [
        (_find_location(key, places) or SourceLocation(_display_path(path), None, path.parent), key, text)
        for key, text in mistakes.items()
    ]
    told.sort(key=lambda one: (one[0].file, one[0].line or 0))
    lines = [f"  {place}  {'.'.join(map(str, key))}: {text}" for place, key, text in told]
    count = "1 mistake" if len(lines) == 1 else f"{len(lines)} mistakes"
    return f"{_display_path(path)} has {count}:\n" + "\n".join(lines)


def _find_location(key: Sequence[str | int], places: dict[KeyPath, SourceLocation]) -> SourceLocation | None:
    """The place of a key, or of the nearest thing around it that was written down."""
    for length in range(len(key), 0, -1):
        if place := places.get(tuple(key[:length])):
            return place
    return None


def _iterate_lines(node: Any, key: KeyPath = ()) -> Iterator[tuple[KeyPath, int]]:
    """Yields the line (from 1) of every key and list entry below a ruamel node."""
    if isinstance(node, CommentedMap):
        for name, value in node.items():
            # A key that `<<` merges in has its line where it was written first, and none here.
            yield (*key, name), (node.lc.key(name)[0] if name in (node.lc.data or {}) else node.lc.line) + 1
            yield from _iterate_lines(value, (*key, name))
    elif isinstance(node, CommentedSeq):
        for at, value in enumerate(node):
            yield (*key, at), node.lc.item(at)[0] + 1
            yield from _iterate_lines(value, (*key, at))


def _flatten(values: dict[str, Any], key: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flatten(value, (*key, name))
        else:
            yield (*key, name), value


def _nest(key: Sequence[str], value: Any) -> dict[str, Any]:
    for part in reversed(key):
        value = {part: value}
    return value  # type: ignore[no-any-return]


def _to_plain(node: Any) -> Any:
    """Strips ruamel's own number, text and container types, which pydantic's strict mode takes for foreign ones."""
    if isinstance(node, dict):
        return {name: _to_plain(value) for name, value in node.items()}
    if isinstance(node, list):
        return [_to_plain(value) for value in node]
    if isinstance(node, date):
        return node.isoformat()
    if isinstance(node, ScalarBoolean):
        return bool(node)
    for kind in (bool, int, float, str):
        if isinstance(node, kind):
            return kind(node)
    return node


def _describe_type(value: Any) -> str:
    return "an empty file" if value is None else f"a {type(_to_plain(value)).__name__}"


def _abbreviate(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _display_path(path: Path) -> str:
    """The path as the user would type it from here."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)
