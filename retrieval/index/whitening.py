"""The whitening of place indexes that were written before bundles were adapted instead: a file beside the vectors."""

import zipfile
from pathlib import Path
from typing import BinaryIO

import numpy as np

from retrieval.bundle.whitening import Whitening
from retrieval.errors import PlaceIndexError


def write_whitening(whitening: Whitening, path: Path) -> None:
    """Write a whitening to an ``.npz`` file."""
    with path.open("wb") as file:
        np.savez(
            file,
            mean=whitening.mean,
            projection=whitening.projection,
            power=np.float64(whitening.power),
            explained=np.float64(whitening.explained),
        )


def read_whitening(source: Path | BinaryIO, where: str | None = None) -> Whitening:
    """Read what `write_whitening` wrote.

    Args:
        source: the file, or its content.
        where: names it in messages; the file's path if left out.

    Raises:
        PlaceIndexError: the file is damaged.
    """
    try:
        with np.load(source, allow_pickle=False) as stored:
            mean, projection = stored["mean"], stored["projection"]
            power, explained = float(stored["power"]), float(stored["explained"])
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise PlaceIndexError(
            f"the whitening cannot be read ({error})", where=where or str(source), remedy="Build the index again"
        ) from error
    if mean.ndim != 1 or projection.ndim != 2 or len(mean) != len(projection):
        raise PlaceIndexError("the whitening's parts do not fit together", where=where or str(source))
    return Whitening(np.asarray(mean, np.float32), np.asarray(projection, np.float32), power, explained)
