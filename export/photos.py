"""Photos to fit, to calibrate and to judge by: decoded as the bundle decodes them, a few at a time."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from export.source import Describe
from retrieval.images import Preprocessing, RgbImage, read_image
from retrieval.machine import available_cores
from retrieval.references.reference import Reference

_AT_ONCE = 32


def read_photos(
    references: Sequence[Reference], preprocessing: Preprocessing, at_once: int = _AT_ONCE
) -> Iterator[NDArray[np.uint8]]:
    """Decode photos in order, in bounded threads.

    Args:
        references: the photos.
        preprocessing: of the bundle.
        at_once: photos in an array.

    Yields:
        (n, H, W, 3) uint8 RGB, n up to `at_once`.

    Raises:
        ImageError: a photo cannot be read; it is named.
    """

    def read(reference: Reference) -> RgbImage:
        return read_image(reference.path, preprocessing)

    with ThreadPoolExecutor(available_cores(), "decode") as pool:
        for begin in range(0, len(references), at_once):
            yield np.stack(list(pool.map(read, references[begin : begin + at_once])))


def describe_photos(
    references: Sequence[Reference],
    preprocessing: Preprocessing,
    describers: Mapping[str, Describe],
    on_progress: Callable[[int], None] | None = None,
) -> dict[str, NDArray[np.float32]]:
    """Describe photos in several ways, each decoded once.

    Args:
        references: at least one photo.
        preprocessing: that all describers share.
        describers: by name.
        on_progress: called with the number of photos done since the last call.

    Returns:
        (N, D) float32 by name.

    Raises:
        ImageError: a photo cannot be read; it is named.
    """
    described: dict[str, list[NDArray[np.float32]]] = {name: [] for name in describers}
    for images in read_photos(references, preprocessing):
        for name, describe in describers.items():
            described[name].append(describe(images))
        if on_progress is not None:
            on_progress(len(images))
    return {name: np.concatenate(parts) for name, parts in described.items()}


def evenly(references: Sequence[Reference], count: int) -> list[Reference]:
    """At most `count` of the photos, evenly taken, so that every walk and every corner has its share."""
    if len(references) <= count:
        return list(references)
    rows = np.linspace(0, len(references) - 1, count).round().astype(int)
    return [references[row] for row in rows]
