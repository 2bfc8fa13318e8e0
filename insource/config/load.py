"""Loading of recipes: schema defaults < recipe < hardware file < SET, with all errors reported at once.

    loaded = load("classifier", ["train.learning_rate=1e-4"])
    loaded.recipe.train.learning_rate    # 0.0001
    loaded.overridden                    # values of the recipe that hardware file and SET replaced

An error has file, line, dotted key, the value given, the values allowed, the closest valid spelling, and a code.
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
from insource.config.error_messages import KeyPath, RecipeMistake, describe_errors
from insource.config.errors import RecipeError
from insource.config.recipe import Recipe
from insource.config.schema.source import Source

RECIPES = Path(__file__).parents[2] / "recipes"
# W&B allows 128 characters; suffixes are added to a name.
MAX_NAME_CHARACTERS = 100
SOURCE_KEYS = ("path", "train", "validation", "calibration", "test")


@dataclass(frozen=True)
class SourceLocation:
    """File and line of a value."""

    file: str
    line: int | None
    folder: Path

    def __str__(self) -> str:
        return self.file if self.line is None else f"{self.file}:{self.line}"


@dataclass(frozen=True)
class LoadedRecipe:
    """A recipe with its origin."""

    recipe: Recipe
    name: str
    path: Path
    hardware: str
    hardware_reason: str
    overridden: tuple[str, ...]
    """One line per value of the recipe that the hardware file or SET replaced."""


@dataclass
class ConfigLayer:
    """Plain values of one or more layers, and the location of each."""

    values: dict[str, Any]
    locations: dict[KeyPath, SourceLocation]


def load(name_or_path: str, overrides: Sequence[str] = (), hardware_name: str | None = None) -> LoadedRecipe:
    """Return the recipe of that name in `recipes/`, or at that path.

    `overrides` are `dotted.key=value` with a YAML value. `hardware_name` is a file of `recipes/hardware/`, by default
    that of this machine. Raises RecipeError with all errors of all layers.
    """
    path = find_recipe(name_or_path)
    recipe_layer = read_layer(path)
    reason = "asked for" if hardware_name else ""
    if not hardware_name:
        hardware_name, reason = hardware.detect()
    override_layer = _parse_overrides(overrides)
    hardware_name, reason = hardware.select_for_base(
        hardware_name, reason, _get_base(override_layer) or _get_base(recipe_layer)
    )
    hardware_layer = read_layer(_find_hardware_file(hardware_name))
    _apply_named_overrides(hardware_layer, "bases", _get_base(override_layer) or _get_base(hardware_layer))
    _apply_named_overrides(hardware_layer, "kinds", _get_value(recipe_layer, "task", "kind"))
    # Values that the hardware file replaces are checked too, so that a recipe is valid on every machine or on none.
    without_hardware = deepcopy(recipe_layer)
    _merge_layer(without_hardware, override_layer)
    # Except `accelerate`: SET changes those values of the hardware file.
    mistakes = {
        mistake.key: mistake
        for mistake in _find_mistakes(without_hardware)
        if mistake.code != "INS-R003" and mistake.key[:1] != ("accelerate",)
    }
    overridden = _merge_layer(recipe_layer, hardware_layer) + _merge_layer(recipe_layer, override_layer)
    mistakes = {mistake.key: mistake for mistake in _find_mistakes(recipe_layer)} | mistakes
    if mistakes:
        locations = recipe_layer.locations | without_hardware.locations
        raise RecipeError(_format_mistakes(path, list(mistakes.values()), locations), code="INS-R001")
    recipe = Recipe.model_validate(recipe_layer.values)
    return LoadedRecipe(
        _resolve_paths(recipe, recipe_layer.locations, path),
        make_recipe_name(path),
        path,
        hardware_name,
        reason,
        tuple(overridden),
    )


def describe_precedence(loaded: LoadedRecipe) -> list[str]:
    """Return the first lines of a stage: the hardware, and each value of the recipe that is replaced."""
    header = f"recipe    {loaded.name} on hardware {loaded.hardware}: {loaded.hardware_reason}"
    return [header, *(f"          {line}" for line in loaded.overridden)]


def make_recipe_name(path: Path) -> str:
    """Return the name of a recipe: its file's stem, in characters that names of served models and W&B artifacts allow.

    tickets.yaml: tickets; "my tickets.yaml": my-tickets; "tickets_lr=1e-4.yaml": tickets_lr-1e-4.
    """
    plain = unicodedata.normalize("NFKD", path.stem).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", plain).strip("-.")[:MAX_NAME_CHARACTERS] or "recipe"


def find_recipe(name_or_path: str) -> Path:
    """Return the path of the recipe. Raises RecipeError with the closest name."""
    recipe_path = Path(name_or_path)
    if recipe_path.suffix in (".yaml", ".yml") or len(recipe_path.parts) > 1:
        if recipe_path.is_file():
            return recipe_path.resolve()
        raise RecipeError(f"{name_or_path}: this recipe file does not exist", code="INS-R007")
    names = sorted(path.stem for path in RECIPES.glob("*.yaml"))
    if name_or_path in names:
        return RECIPES / f"{name_or_path}.yaml"
    raise RecipeError(
        f"There is no recipe {name_or_path!r}.{_suggest(name_or_path, names)}\n"
        f"  recipes/ has: {', '.join(names)}; or give the path of a YAML file.",
        code="INS-R007",
    )


def read_layer(path: Path) -> ConfigLayer:
    """Return the values of a YAML file with their lines. Raises RecipeError if it is not a YAML mapping."""
    display_path = _display_path(path)
    try:
        document = YAML().load(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        message = f"{display_path}: not UTF-8 text ({error.reason} at byte {error.start})"
        raise RecipeError(message, code="INS-R008") from None
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        problem = (error.problem or "not YAML").splitlines()[0]
        raise RecipeError(f"{display_path}{line}: {problem}", code="INS-R008") from None
    except (YAMLError, ValueError) as error:  # ValueError: a date that no calendar has, such as 2026-13-01
        raise RecipeError(f"{display_path}: {str(error).splitlines()[0]}", code="INS-R008") from None
    if not isinstance(document, CommentedMap):
        raise RecipeError(
            f"{display_path}: a recipe is a mapping with task, data and model; this is {_describe_type(document)}",
            code="INS-R008",
        )
    locations = {key: SourceLocation(display_path, line, path.parent) for key, line in _iterate_lines(document)}
    return ConfigLayer(_to_plain(document), locations)


def _find_mistakes(layer: ConfigLayer) -> list[RecipeMistake]:
    try:
        Recipe.model_validate(layer.values)
    except ValidationError as error:
        return describe_errors(error, layer.values)
    return []


def _find_hardware_file(name: str) -> Path:
    names = hardware.list_names()
    if name in names:
        return hardware.HARDWARE_DIR / f"{name}.yaml"
    raise RecipeError(
        f"There is no hardware {name!r}.{_suggest(name, names)}\n  recipes/hardware/ has: {', '.join(names)}",
        code="INS-R009",
    )


def _suggest(name: str, names: Sequence[str]) -> str:
    matches = get_close_matches(name, names, 1)
    return f" Did you mean {matches[0]}?" if matches else ""


def _parse_overrides(overrides: Sequence[str]) -> ConfigLayer:
    layer = ConfigLayer({}, {})
    for override in overrides:
        dotted, equals, text = override.partition("=")
        key = tuple(dotted.split("."))
        if not equals or not all(key):
            message = f"SET {override!r}: write dotted.key=value, such as train.learning_rate=1e-4"
            raise RecipeError(message, code="INS-R010")
        try:
            value = _to_plain(YAML().load(text))
        except (YAMLError, ValueError):
            message = f"SET {override}: {text!r} is not a YAML value; put quotes around text"
            raise RecipeError(message, code="INS-R010") from None
        _merge_layer(layer, ConfigLayer(_nest(key, value), {key: SourceLocation(f"SET {dotted}", None, Path.cwd())}))
    return layer


def _merge_layer(target: ConfigLayer, layer: ConfigLayer) -> list[str]:
    """Merge a layer into the target in place: mappings merge, other values are replaced.

    Returns one line per replaced value.
    """
    overridden = []
    for key, value in _flatten(layer.values):
        section = target.values
        for index, part in enumerate(key[:-1]):
            if not isinstance(section.get(part), dict):
                section[part] = {}
                target.locations.setdefault(key[: index + 1], _get_location(key, layer))
            section = section[part]
        if key[-1] in section and section[key[-1]] != value:
            overridden.append(
                f"{'.'.join(key)}: {_abbreviate(value)} by {_get_location(key, layer).file}, not "
                f"{_abbreviate(section[key[-1]])}"
            )
        section[key[-1]] = value
    target.locations.update(layer.locations)
    return overridden


def _apply_named_overrides(hardware_layer: ConfigLayer, section: str, name: object) -> None:
    """Apply the overrides for a name in a section of a hardware file (`bases`, `kinds`) to the rest of it, in place."""
    overrides_by_name = hardware_layer.values.pop(section, {})
    if isinstance(name, str) and name in overrides_by_name:
        locations = {
            key[2:]: location for key, location in hardware_layer.locations.items() if key[:2] == (section, name)
        }
        _merge_layer(hardware_layer, ConfigLayer(overrides_by_name[name], locations))


def _get_base(layer: ConfigLayer) -> object:
    return _get_value(layer, "model", "base")


def _get_value(layer: ConfigLayer, section: str, key: str) -> object:
    """Return the value of a key in a layer, None if it has none."""
    values = layer.values.get(section)
    return values.get(key) if isinstance(values, dict) else None


def _get_location(key: KeyPath, layer: ConfigLayer) -> SourceLocation:
    """Return the location of a value of a layer; each value has one."""
    location = _find_location(key, layer.locations)
    assert location is not None
    return location


def _resolve_paths(recipe: Recipe, locations: dict[KeyPath, SourceLocation], path: Path) -> Recipe:
    """Return the recipe with absolute paths.

    Paths of a file are relative to its folder, paths of SET to the current folder.
    """

    def to_path(text: str, *key: str) -> Path:
        location = _find_location(key, locations)
        return (location.folder if location else path.parent) / Path(text).expanduser()

    def absolute(text: str, *key: str) -> str:
        return str(to_path(text, *key).resolve())

    def with_absolute_paths(source: Source, *section: str) -> Source:
        changes: dict[str, Any] = {
            name: absolute(value, *section, name)
            for name in SOURCE_KEYS
            if (value := getattr(source, name)) is not None
        }
        for name in ("paths", "labelled"):
            if (paths := getattr(source, name)) is not None:
                changes[name] = [absolute(value, *section, name) for value in paths]
        return source.model_copy(update=changes)

    data_changes: dict[str, object] = {"source": with_absolute_paths(recipe.data.source, "data", "source")}
    if (teacher := recipe.data.teacher) is not None:
        source = with_absolute_paths(teacher.source, "data", "teacher", "source")
        data_changes["teacher"] = teacher.model_copy(update={"source": source})
    try:
        base = base_models.resolve_base(recipe.model.base, to_path(recipe.model.base, "model", "base"))
    except RecipeError as error:
        raise error.with_message(f"{_find_location(('model', 'base'), locations)}: {error}") from None
    baselines = [
        baseline
        if baseline.path is None
        else baseline.model_copy(update={"path": absolute(baseline.path, "compare", "baselines")})
        for baseline in recipe.compare.baselines
    ]
    return recipe.model_copy(
        update={
            "data": recipe.data.model_copy(update=data_changes),
            "model": recipe.model.model_copy(update={"base": base}),
            "compare": recipe.compare.model_copy(update={"baselines": baselines}),
        }
    )


def _format_mistakes(path: Path, mistakes: Sequence[RecipeMistake], locations: dict[KeyPath, SourceLocation]) -> str:
    recipe_location = SourceLocation(_display_path(path), None, path.parent)
    located = [(_find_location(mistake.key, locations) or recipe_location, mistake) for mistake in mistakes]
    located.sort(key=lambda entry: (entry[0].file, entry[0].line or 0))
    lines = [
        f"  {location}  {'.'.join(map(str, mistake.key))}: {mistake.message} [{mistake.code}]"
        for location, mistake in located
    ]
    count = "1 mistake" if len(lines) == 1 else f"{len(lines)} mistakes"
    return f"{_display_path(path)} has {count}:\n" + "\n".join(lines)


def _find_location(key: Sequence[str | int], locations: dict[KeyPath, SourceLocation]) -> SourceLocation | None:
    """Return the location of a key, or of its nearest parent with a location."""
    for length in range(len(key), 0, -1):
        if location := locations.get(tuple(key[:length])):
            return location
    return None


def _iterate_lines(node: object, key: KeyPath = ()) -> Iterator[tuple[KeyPath, int]]:
    """Yield the line (from 1) of every key and list entry below a ruamel node."""
    if isinstance(node, CommentedMap):
        for name, value in node.items():
            # A key merged by `<<` has no line in this mapping.
            yield (*key, name), (node.lc.key(name)[0] if name in (node.lc.data or {}) else node.lc.line) + 1
            yield from _iterate_lines(value, (*key, name))
    elif isinstance(node, CommentedSeq):
        for index, value in enumerate(node):
            yield (*key, index), node.lc.item(index)[0] + 1
            yield from _iterate_lines(value, (*key, index))


def _flatten(values: dict[str, object], key: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flatten(value, (*key, name))
        else:
            yield (*key, name), value


def _nest(key: Sequence[str], value: Any) -> dict[str, object]:
    for part in reversed(key):
        value = {part: value}
    return value  # type: ignore[no-any-return]


def _to_plain(node: object) -> Any:
    """Return a node without ruamel's number, text and container types, which pydantic's strict mode refuses."""
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


def _describe_type(value: object) -> str:
    return "an empty file" if value is None else f"a {type(_to_plain(value)).__name__}"


def _abbreviate(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _display_path(path: Path) -> str:
    """Return the path relative to the current folder, if it is below it."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)
