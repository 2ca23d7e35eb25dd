"""Whether a run may go on from a checkpoint: only as the same recipe on the same photos."""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from retrieval.errors import SightfixError
from training.geopair import PhotoTable
from training.photo_cache import PhotoCache
from training.recipe_settings import Recipe
from training.run_state import Progress

# What may change from one part of a run to the next.
_MAY_CHANGE: Final = frozenset(
    {"description", "training.epochs", "training.log_every_steps", "training.save_every_minutes"}
)


class OtherRunError(SightfixError):
    """The folder holds a run of another recipe, or of other photos."""

    default_code = "other_run"


def hash_photos(photos: PhotoCache, table: PhotoTable) -> str:
    """What identifies the photos of a run: their ids, sessions and places, in order; SHA-256 in hex."""
    digest = hashlib.sha256(np.ascontiguousarray(table.points).tobytes())
    for reference in photos.references:
        digest.update(f"{reference.id}\n{reference.session}\n".encode())
    return digest.hexdigest()


def check_same_recipe(before: Recipe, now: Recipe, folder: Path) -> None:
    """Refuse to go on with another recipe; the number of epochs may change, and how often is logged and saved.

    Raises:
        OtherRunError: names the keys that differ.
    """
    old, new = dict(_flat(before.model_dump())), dict(_flat(now.model_dump()))
    keys = sorted((old.keys() | new.keys()) - _MAY_CHANGE)
    _refuse([key for key in keys if old.get(key) != new.get(key)], folder)


def check_same_photos(before: Progress, now: Progress, folder: Path) -> None:
    """Refuse to go on with other photos or another number of processes.

    Raises:
        OtherRunError: says what differs.
    """
    differing = ["the photos"] if before.photos != now.photos else []
    if before.processes != now.processes:
        differing.append("the number of devices")
    _refuse(differing, folder)


def _refuse(differing: list[str], folder: Path) -> None:
    if differing:
        raise OtherRunError(
            f"the folder holds a run that differs in {', '.join(differing)}",
            where=str(folder),
            remedy="Choose another --out, give the same command again, or begin anew with --restart",
        )


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
