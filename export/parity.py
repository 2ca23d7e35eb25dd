"""Does a graph describe images as the model it was made from does? Measured before anything is written."""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from export.source import ExportSource, run_on_cpu
from retrieval.bundle import ParityReport
from retrieval.errors import BundleError
from retrieval.images import RgbImage

MIN_COSINE: Final = 0.99999
# Weights stored as fp16 are rounded ones.
MIN_COSINE_OF_ROUNDED_WEIGHTS: Final = 0.9999

# A batch of one, an even and an odd one: graphs with a batch baked in fail one of them.
BATCHES: Final = (1, 2, 7)


def check_parity(
    source: ExportSource,
    *,
    photos: NDArray[np.uint8] | None = None,
    batches: Sequence[int] = BATCHES,
    min_cosine: float = MIN_COSINE,
) -> ParityReport:
    """Compare a graph with the truth over noise of many scales, the hardest images we know, and over photos.

    Args:
        source: graph and truth.
        photos: (n, H, W, 3) uint8 to compare on besides.
        batches: batch sizes to run the graph at, up to 8 images each.
        min_cosine: below it the graph is not trusted.

    Raises:
        BundleError: the graph fails to run, or differs (``parity_failed``).
    """
    images = noise(source.preprocessing.height, source.preprocessing.width)
    if photos is not None:
        images = np.concatenate([images, photos])
    truth = source.truth(images)
    try:
        describe = run_on_cpu(source.graph)
        ours = [(describe(images[:count]), truth[:count]) for count in batches]
        ours += [(describe(images[begin : begin + 8]), truth[begin : begin + 8]) for begin in range(0, len(images), 8)]
    except Exception as error:  # ONNX Runtime's exceptions share no base class but this
        raise BundleError(
            f"the graph of {source.name} does not run ({error})",
            remedy="This is a fault of the export; please report it with the recipe",
            code="parity_failed",
        ) from error
    cosine = min(float((one * other).sum(axis=1).min()) for one, other in ours)
    # Not `<`: a NaN must not pass.
    if not cosine >= min_cosine:
        raise BundleError(
            f"the graph of {source.name} differs from {source.truth_name}: worst cosine {cosine:.6f}, "
            f"wanted {min_cosine}",
            remedy="Nothing was written. This is a fault of the export; please report it with the recipe",
            code="parity_failed",
        )
    return ParityReport(reference=source.truth_name, images=len(images), min_cosine=cosine)


def noise(height: int, width: int) -> NDArray[np.uint8]:
    """(8, height, width, 3) uint8: chequers of random colours, from one cell to 128 cells a side."""
    rng = np.random.default_rng(0)
    return np.stack([_chequers(rng, (height, width, 3), cells) for cells in (1, 2, 4, 8, 16, 32, 64, 128)])


def _chequers(rng: np.random.Generator, shape: tuple[int, int, int], cells: int) -> RgbImage:
    coarse = rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
    rows = np.arange(shape[0]) * cells // shape[0]
    columns = np.arange(shape[1]) * cells // shape[1]
    return coarse[rows][:, columns]
