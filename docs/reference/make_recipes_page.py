"""Write recipes.md from the settings' own classes and docstrings: ``python docs/reference/make_recipes_page.py``."""

import inspect
import re
import types
import typing
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel

from retrieval.images import Preprocessing
from training import recipe_settings as settings
from training.objectives.registry import OBJECTIVES

PAGE = Path(__file__).with_name("recipes.md")
_HEAD = """# Recipes

A recipe is a TOML file that decides everything of a training run but the photos. `sightfix train` lists those that are
shipped (`training/recipes/`); any of them by name, or a file of your own by path, goes into `sightfix train` and
`sightfix compare`. Every key is typed, and an unknown one is an error that suggests the nearest.

`--set table.key=value` changes a key for one run: `--set training.pairs=32`; `none` takes away a key that may be
missing.
"""
_OBJECTIVE = """## `[objective]`

`name` is one of {names}. The other keys are the
objective's own; what is left out has the value of the paper's final configuration. What each objective does: [The
objectives](../explanation/objectives.md).
"""
_AFTER = {
    "geopair": settings.GeoPairSettings,
    "training": settings.TrainingSettings,
    "optimiser": settings.OptimiserSettings,
    "schedule": settings.ScheduleSettings,
    "augmentation": settings.AugmentationSettings,
    "validation": settings.ValidationSettings,
}


def page() -> str:
    """The whole page."""
    parts = [_HEAD]
    for name, table in (("network", settings.NetworkSettings), ("image", Preprocessing)):
        parts.append(f"## `[{name}]`\n\n{_table(table)}")
    parts.append(_OBJECTIVE.format(names=", ".join(f"`{name}`" for name in OBJECTIVES)))
    for name, objective in OBJECTIVES.items():
        parts.append(f"### `{name}`\n\n{_table(objective.settings_class)}")
    for name, table in _AFTER.items():
        parts.append(f"## `[{name}]`\n\n{_table(table)}")
    return "\n".join(parts)


def _table(table: type[BaseModel]) -> str:
    meaning = dict(_attributes(table))
    lines = ["| key | value | default | |", "|---|---|---|---|"]
    for name, field in table.model_fields.items():
        default = "needed" if field.is_required() else _written(field.default)
        lines.append(f"| `{name}` | {_values(field.annotation)} | {default} | {meaning[name]} |")
    return "\n".join(lines) + "\n"


def _attributes(table: type[BaseModel]) -> Iterator[tuple[str, str]]:
    """Names and texts of the Attributes section of a class's docstring."""
    section = inspect.cleandoc(table.__doc__ or "").partition("Attributes:\n")[2].partition("\n\n")[0]
    for entry in re.split(r"\n(?=    \w)", section):
        names, _, text = entry.strip().partition(": ")
        for name in names.split(", "):
            yield name, " ".join(text.split())


def _values(annotation: object) -> str:
    if typing.get_origin(annotation) is typing.Literal:
        return ", ".join(f"`{_written(value)}`" for value in typing.get_args(annotation))
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return _values(next(kind for kind in typing.get_args(annotation) if kind is not type(None)))
    names: dict[object, str] = {int: "whole number", float: "number", bool: "true or false", str: "text"}
    return names[annotation]


def _written(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
