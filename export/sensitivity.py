"""Which layers must stay in fp32: found by measuring what each does to the descriptors of real photos."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx
from numpy.typing import NDArray

from export.gate import cosines
from export.source import Describe, run_on_cpu

# Damage is measured on the photos that suffered most: they tell the layers apart, and more would only take longer.
_PHOTOS_FOR_DAMAGE: Final = 8

# How many of the worst layers are left out, one trial after another.
_TRIALS: Final = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
_AT_ONCE: Final = 8


@dataclass(frozen=True)
class Search:
    """What a search works with.

    Attributes:
        build: makes a graph in which just these layers are quantised.
        fp32: the truth.
        layers: names of all that could be quantised.
        photos: (n, H, W, 3) uint8 to judge by.
        on_progress: is told what is done, how many of it, of how many.
    """

    build: Callable[[Collection[str]], onnx.ModelProto]
    fp32: Describe
    layers: Sequence[str]
    photos: NDArray[np.uint8]
    on_progress: Callable[[str, int, int], None]


@dataclass(frozen=True)
class Found:
    """A graph that a search has come up with; see `export.int8.QuantisedGraph`."""

    model: onnx.ModelProto
    skipped: tuple[str, ...]
    worst_cosine: float
    mean_cosine: float


def search_skip_list(search: Search, target: float) -> Found:
    """Leave as few layers in fp32 as it takes to describe every photo well enough.

    All layers are tried first. Then each is quantised alone, and the layers are left out in the order of the damage
    they do, 1, 2, 3, 4, 6, 8, 12… of them, at most half of all: beyond that the graph is no faster than fp32.

    Args:
        search: what to work with.
        target: worst cosine at which it ends.

    Returns:
        the first that reaches the target, or the one with the best worst cosine.
    """
    truth = _describe(search.fp32, search.photos)
    search.on_progress("Trying int8", 0, 1)
    best, measured = _try(search, (), truth)
    search.on_progress("Trying int8", 1, 1)
    if best.worst_cosine >= target:
        return best
    hardest = np.argsort(measured)[:_PHOTOS_FOR_DAMAGE]
    damage = _damage_of_each(search, search.photos[hardest], truth[hardest])
    ranked = sorted(search.layers, key=lambda name: -damage[name])
    trials = [count for count in _TRIALS if 2 * count <= len(ranked)]
    for number, count in enumerate(trials):
        found, _ = _try(search, tuple(ranked[:count]), truth)
        search.on_progress("Leaving layers in fp32", number + 1, len(trials))
        if found.worst_cosine >= target:
            return found
        best = max(best, found, key=lambda one: one.worst_cosine)
    return best


def _try(search: Search, skipped: tuple[str, ...], truth: NDArray[np.float32]) -> tuple[Found, NDArray[np.float64]]:
    model = search.build([name for name in search.layers if name not in skipped])
    measured = _measure(model, search.photos, truth)
    in_order = tuple(name for name in search.layers if name in skipped)
    return Found(model, in_order, float(measured.min()), float(measured.mean())), measured


def _damage_of_each(search: Search, photos: NDArray[np.uint8], truth: NDArray[np.float32]) -> dict[str, float]:
    damage = {}
    for number, name in enumerate(search.layers):
        damage[name] = 1.0 - float(_measure(search.build([name]), photos, truth).mean())
        search.on_progress("Measuring layers", number + 1, len(search.layers))
    return damage


def _measure(model: onnx.ModelProto, photos: NDArray[np.uint8], truth: NDArray[np.float32]) -> NDArray[np.float64]:
    """(n,) cosines to the truth; -1 where a descriptor is not finite."""
    return np.nan_to_num(cosines(truth, _describe(run_on_cpu(model), photos)), nan=-1.0)


def _describe(describe: Describe, photos: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.concatenate([describe(photos[begin : begin + _AT_ONCE]) for begin in range(0, len(photos), _AT_ONCE)])
