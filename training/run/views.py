"""From planned batches to images in memory: what a data loader hands to the training step."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from training.backbones import InputNormalisation
from training.geopair import PairBatch, PhotoTable
from training.photos.cache import PhotoCache
from training.recipe_settings import Recipe
from training.run.augmentation import BatchAugmentation, flip


@dataclass(frozen=True, slots=True)
class PairImages:
    """A batch of n pairs as the cache holds them.

    Attributes:
        index: of the batch in its epoch.
        queries: (n, 3, H, W) uint8 RGB, channels last in memory.
        positives: (n, 3, H, W) uint8.
        negatives: (n, K, 3, H, W) uint8 mined negatives, or None.
        query_points: (n, 3) float64, see `training.geopair.PhotoTable`.
        positive_points: (n, 3) float64.
        negative_points: (n, K, 3) float64, or None.
    """

    index: int
    queries: Tensor
    positives: Tensor
    negatives: Tensor | None
    query_points: Tensor
    positive_points: Tensor
    negative_points: Tensor | None

    @property
    def count(self) -> int:
        """How many photos the batch holds."""
        mined = 0 if self.negatives is None else self.negatives.shape[0] * self.negatives.shape[1]
        return 2 * len(self.queries) + mined

    def to(self, device: torch.device) -> "PairImages":
        """The same on a device; asynchronously from pinned memory."""

        def moved(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device, non_blocking=True)

        return PairImages(
            self.index,
            self.queries.to(device, non_blocking=True),
            self.positives.to(device, non_blocking=True),
            moved(self.negatives),
            self.query_points.to(device, non_blocking=True),
            self.positive_points.to(device, non_blocking=True),
            moved(self.negative_points),
        )

    def pin_memory(self) -> "PairImages":
        """The same in page-locked memory (the data loader calls it where there is a GPU)."""
        return PairImages(
            self.index,
            self.queries.pin_memory(),
            self.positives.pin_memory(),
            None if self.negatives is None else self.negatives.pin_memory(),
            self.query_points.pin_memory(),
            self.positive_points.pin_memory(),
            None if self.negative_points is None else self.negative_points.pin_memory(),
        )


def photo_count(batch: PairBatch) -> int:
    """How many photos a planned batch holds."""
    return 2 * len(batch.queries) + (0 if batch.negatives is None else batch.negatives.size)


class PlannedImages(Dataset[PairImages]):
    """The images of planned batches, one item a batch.

    Args:
        batches: of the epoch, in order.
        cache: the decoded photos.
        table: where they were taken; its rows are the cache's.
    """

    def __init__(self, batches: Sequence[PairBatch], cache: PhotoCache, table: PhotoTable) -> None:
        self._batches = batches
        self._cache = cache
        self._points = table.points

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, index: int) -> PairImages:
        batch = self._batches[index]
        negatives = negative_points = None
        if batch.negatives is not None:
            photos = self._images(batch.negatives.ravel())
            negatives = photos.reshape(*batch.negatives.shape, *photos.shape[1:])
            negative_points = torch.from_numpy(self._points[batch.negatives])
        return PairImages(
            index,
            self._images(batch.queries),
            self._images(batch.positives),
            negatives,
            torch.from_numpy(self._points[batch.queries]),
            torch.from_numpy(self._points[batch.positives]),
            negative_points,
        )

    def _images(self, rows: NDArray[np.int64]) -> Tensor:
        # (n, H, W, 3) seen as (n, 3, H, W): channels last without a copy.
        return torch.from_numpy(self._cache.rows(rows)).permute(0, 3, 1, 2)


def load_batches(images: PlannedImages, order: Sequence[int], *, workers: int, pinned: bool) -> DataLoader[PairImages]:
    """Load some of an epoch's batches in a given order.

    Args:
        images: the epoch.
        order: indices of batches: those not yet trained on, and of this process.
        workers: processes that load ahead; 0 to load when asked, which is best where the cores are busy training.
        pinned: load into page-locked memory, for a GPU.
    """
    return DataLoader(
        images,
        batch_size=None,
        sampler=list(order),
        num_workers=workers,
        pin_memory=pinned,
        prefetch_factor=4 if workers else None,
    )


# From the photos of a batch to the two views an objective compares.


@dataclass(frozen=True, slots=True)
class PairViews:
    """N pairs of views as the net wants them.

    Attributes:
        x, y: (N, 3, H, W) float32, normalised.
        negatives: (N, K, 3, H, W) float32, normalised, or None.
        x_points, y_points: (N, 3) float64, where the photos were taken.
    """

    x: Tensor
    y: Tensor
    negatives: Tensor | None
    x_points: Tensor
    y_points: Tensor


class ViewMaker:
    """Augments a batch as its recipe says and lays out its pairs.

    With VG-SSL's `pair_negative` two different views of each mined negative are a pair of the batch themselves
    (section 1.4 of the paper's code as read in our specification); the triplet objective gets its negatives apart.

    Args:
        recipe: its `[augmentation]`, and what becomes of negatives.
        normalisation: the encoder's.
    """

    def __init__(self, recipe: Recipe, normalisation: InputNormalisation) -> None:
        self._augmentation = BatchAugmentation(recipe.augmentation)
        self._changes_queries = recipe.augmentation.applies_to == "queries_and_negatives"
        self._pairs_of_negatives = recipe.views_of_negatives
        self._normalisation = normalisation

    def __call__(self, images: PairImages, generator: torch.Generator) -> PairViews:
        """Make the views of a batch.

        Args:
            images: on any device.
            generator: of that device; alone decides what is random.
        """
        flipped = self._augmentation.flips(generator)
        queries, positives, mined = images.queries, images.positives, images.negatives
        x = self._augmentation.random_view(queries, generator) if self._changes_queries else queries
        if mined is None or images.negative_points is None:
            return PairViews(
                self._ready(x, flipped),
                self._ready(positives, flipped),
                None,
                images.query_points,
                images.positive_points,
            )
        if self._pairs_of_negatives:
            photos, points = mined.flatten(0, 1), images.negative_points.flatten(0, 1)
            first = self._augmentation.random_view(photos, generator)
            second = self._augmentation.random_view(photos, generator)
            return PairViews(
                self._ready(torch.cat([x.float(), first]), flipped),
                self._ready(torch.cat([positives.float(), second]), flipped),
                None,
                torch.cat([images.query_points, points]),
                torch.cat([images.positive_points, points]),
            )
        negatives = mined.flatten(0, 1)
        if self._changes_queries:
            negatives = self._augmentation.random_view(negatives, generator)
        return PairViews(
            self._ready(x, flipped),
            self._ready(positives, flipped),
            self._ready(negatives, flipped).reshape(mined.shape),
            images.query_points,
            images.positive_points,
        )

    def _ready(self, images: Tensor, flipped: bool) -> Tensor:
        turned = flip(images) if flipped else images
        return self._normalisation.apply(turned).contiguous(memory_format=torch.channels_last)
