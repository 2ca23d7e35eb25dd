"""Recipes: read from TOML, shipped or the user's own, with overrides such as `training.pairs=32`."""

import difflib
import tomllib
import types
from collections.abc import Iterator, Sequence
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Final, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from retrieval.errors import SightfixError
from training.recipe_settings import ObjectiveChoice, Recipe, Setting

_SUFFIX: Final = ".toml"


class RecipeError(SightfixError):
    """A recipe that cannot be found, read or understood."""

    default_code = "recipe"


def list_recipes() -> dict[str, str]:
    """The recipes that sightfix ships, sorted by name: their names and descriptions."""
    return {name: tomllib.loads(file.read_text(encoding="utf-8"))["description"] for name, file in _shipped().items()}


def load_recipe(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and check every key, the objective's too.

    Args:
        name_or_path: one of `list_recipes()`, or the path of a .toml file.
        overrides: `table.key=value`, the value as TOML writes it (a text may do without quotes); `none` takes away a
            key that may be missing.

    Raises:
        RecipeError: no such recipe, no valid TOML (names the line), an unknown key (suggests the nearest and lists the
            valid ones), a missing key, or a value of another type or outside its domain.
    """
    source, text = _read(name_or_path)
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(
            f"this is not valid TOML: {error}", where=source, remedy="Correct that line; texts stand in quotes"
        ) from error
    overridden = [_apply(content, override) for override in overrides]
    try:
        recipe = Recipe.model_validate(content)
    except ValidationError as error:
        raise _explained(error.errors()[0], source, overridden) from error
    _check_objective(recipe.objective, source, overridden)
    return recipe


def _shipped() -> dict[str, Traversable]:
    """The shipped recipes by name, from one folder for each backbone."""
    folders = [folder for folder in (resources.files("training") / "recipes").iterdir() if folder.is_dir()]
    files = (file for folder in folders for file in folder.iterdir() if file.name.endswith(_SUFFIX))
    return {file.name.removesuffix(_SUFFIX): file for file in sorted(files, key=lambda file: file.name)}


def _read(name_or_path: str | Path) -> tuple[str, str]:
    """Where the recipe was read from, for messages, and its text."""
    path = Path(name_or_path)
    if isinstance(name_or_path, str) and path.suffix != _SUFFIX and len(path.parts) == 1:
        shipped = _shipped()
        if name_or_path not in shipped:
            raise RecipeError(
                f"there is no recipe {name_or_path!r}",
                remedy=f"{_suggestion(name_or_path, list(shipped))}Choose a {_SUFFIX} file "
                f"or one of {', '.join(shipped)}",
                code="unknown_recipe",
            )
        return f"{name_or_path}{_SUFFIX}", shipped[name_or_path].read_text(encoding="utf-8")
    try:
        return str(path), path.read_text(encoding="utf-8")
    except OSError as error:
        raise RecipeError(f"the recipe cannot be read ({error.strerror})", where=str(path)) from error
    except UnicodeDecodeError as error:
        raise RecipeError("the recipe is not UTF-8 text", where=str(path)) from error


def _suggestion(key: str, names: Sequence[str]) -> str:
    """'Did you mean …? ' for the nearest name, or nothing."""
    near = difflib.get_close_matches(key, names, n=1)
    if not near:  # a key alone, where names have their table before them
        last = {name.rpartition(".")[2]: name for name in names}
        near = [last[match] for match in difflib.get_close_matches(key.rpartition(".")[2], list(last), n=1)]
    return f"Did you mean {near[0]}? " if near else ""


def _keys(table: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """The dotted keys of a table and of those within it."""
    for name, field in table.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _keys(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _apply(content: dict[str, Any], override: str) -> str:
    """Write one override into a recipe's content and return its key."""
    key, equals, text = (part.strip() for part in override.partition("="))
    where = f"override {override!r}"
    if not equals or not key:
        raise RecipeError("this is not key=value", where=where, remedy="Write it like training.pairs=32")
    annotation = _annotation(key)
    if annotation is None:
        keys = list(_keys(Recipe))
        raise RecipeError(
            f"unknown key {key}", where=where, remedy=f"{_suggestion(key, keys)}The keys are {', '.join(keys)}"
        )
    *tables, last = key.split(".")
    place = content
    for table in tables:
        place = place.setdefault(table, {})
        if not isinstance(place, dict):
            raise RecipeError(f"the recipe's {table} is no table", where=where)
    if _may_be_missing(annotation) and text.lower() == "none":
        place.pop(last, None)
    else:
        place[last] = text if annotation is str else _value(text)
    return key


def _annotation(key: str) -> Any:
    """The type of a dotted key's value, or None when there is no such key."""
    table: type[BaseModel] = Recipe
    *tables, last = key.split(".")
    for name in tables:
        field = table.model_fields.get(name)
        if field is None or not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
            return None
        table = field.annotation
    if last in table.model_fields:
        annotation = table.model_fields[last].annotation
        return None if isinstance(annotation, type) and issubclass(annotation, BaseModel) else annotation
    return Setting if table is ObjectiveChoice else None


def _may_be_missing(annotation: Any) -> bool:
    return get_origin(annotation) in (Union, types.UnionType) and type(None) in get_args(annotation)


def _value(text: str) -> Setting:
    """A value as TOML writes it; what TOML does not read as one is a text."""
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
    return value if isinstance(value, int | float | bool | str) else text


def _explained(fault: ErrorDetails, source: str, overridden: Sequence[str]) -> RecipeError:
    """Pydantic's first complaint in our words."""
    path = [str(part) for part in fault["loc"]]
    if path[:1] == ["objective"]:
        path = path[:2]  # what follows names the members of the union of types
    key = ".".join(path)
    where = f"override {key}" if key in overridden else source
    if fault["type"] == "extra_forbidden":
        keys = list(_keys(Recipe))
        table = ".".join(path[:-1])
        inside = [name.removeprefix(f"{table}.") for name in keys if name.startswith(f"{table}.")] if table else []
        valid = f"The keys of [{table}] are {', '.join(inside)}" if inside else f"The keys are {', '.join(keys)}"
        return RecipeError(f"unknown key {key}", where=where, remedy=f"{_suggestion(key, keys)}{valid}")
    if fault["type"] == "missing":
        return RecipeError(f"the key {key} is missing", where=where, remedy=f"Add {key} to the recipe")
    message = fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "value_error":
        return RecipeError(message, where=where)
    return RecipeError(f"{key} is {fault['input']!r}: {message[0].lower()}{message[1:]}", where=where)


def _check_objective(choice: ObjectiveChoice, source: str, overridden: Sequence[str]) -> None:
    """Let the objective check its settings now, rather than after the photos have been read."""
    from training.objectives.objective import ObjectiveError
    from training.objectives.registry import objective_settings

    try:
        objective_settings(choice.name, choice.settings)
    except ObjectiveError as error:
        changed = [key for key in overridden if key.startswith("objective.")]
        where = f"override {', '.join(changed)}" if changed else source
        raise RecipeError(error.what, where=f"{where}: [objective]", remedy=error.remedy) from error
