"""From the batches of an epoch to images in memory, and from these to the two views that an objective compares."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from training.backbones import InputNormalisation
from training.geopair import PairBatch, PhotoTable
from training.objectives.pair_model import PairViews
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

    def to(self, device: torch.device) -> "PairImages":
        """The same on a device; asynchronously from pinned memory."""
        return self._with_tensors(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "PairImages":
        """The same in page-locked memory (the data loader calls it where there is a GPU)."""
        return self._with_tensors(Tensor.pin_memory)

    def _with_tensors(self, change: Callable[[Tensor], Tensor]) -> "PairImages":
        changed: dict[str, Any] = {
            field.name: change(tensor)
            for field in fields(self)
            if isinstance(tensor := getattr(self, field.name), Tensor)
        }
        return replace(self, **changed)


class PairDataset(Dataset[PairImages]):
    """The images of an epoch's batches, one item a batch.

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

        def images(rows: NDArray[np.int64]) -> Tensor:
            # (…, H, W, 3) seen as (…, 3, H, W): channels last without a copy.
            return torch.from_numpy(self._cache.rows(rows)).movedim(-1, -3)

        def points(rows: NDArray[np.int64]) -> Tensor:
            return torch.from_numpy(self._points[rows])

        return PairImages(
            index,
            images(batch.queries),
            images(batch.positives),
            None if batch.negatives is None else images(batch.negatives),
            points(batch.queries),
            points(batch.positives),
            None if batch.negatives is None else points(batch.negatives),
        )

    def load(self, order: Sequence[int], *, workers: int, pinned: bool) -> DataLoader[PairImages]:
        """Load some of the batches in a given order.

        Args:
            order: indices of batches: those not yet trained on, and of this process.
            workers: processes that load ahead; 0 to load when asked, which is best where the cores are busy training.
            pinned: load into page-locked memory, for a GPU.
        """
        return DataLoader(
            self,
            batch_size=None,
            sampler=list(order),
            num_workers=workers,
            pin_memory=pinned,
            prefetch_factor=4 if workers else None,
        )


class ViewMaker:
    """Augments a batch as its recipe says and lays out its pairs.

    With VG-SSL's `pair_negative` two different views of each mined negative are a pair of the batch themselves
    (section 1.4 of our specification); the triplet objective gets its negatives separately.

    Args:
        recipe: its `[augmentation]`, and what becomes of negatives.
        normalisation: the encoder's.
    """

    def __init__(self, recipe: Recipe, normalisation: InputNormalisation) -> None:
        self._augmentation = BatchAugmentation(recipe.augmentation)
        self._augments_queries = recipe.augmentation.applies_to == "queries_and_negatives"
        self._pairs_of_negatives = recipe.views_of_negatives
        self._normalisation = normalisation

    def __call__(self, images: PairImages, generator: torch.Generator) -> PairViews:
        """Make the views of a batch.

        Args:
            images: on any device.
            generator: of that device; alone decides what is random.
        """
        augment = self._augmentation.random_view
        flipped = self._augmentation.flips(generator)

        def ready(photos: Tensor) -> Tensor:
            oriented = flip(photos) if flipped else photos
            return self._normalisation.apply(oriented).contiguous(memory_format=torch.channels_last)

        x, y = images.queries, images.positives
        x_points, y_points = images.query_points, images.positive_points
        if self._augments_queries:
            x = augment(x, generator)
        if images.negatives is None or images.negative_points is None:
            return PairViews(ready(x), ready(y), None, x_points, y_points)
        photos = images.negatives.flatten(0, 1)
        if self._pairs_of_negatives:
            first, second = augment(photos, generator), augment(photos, generator)
            x, y = torch.cat([x.float(), first]), torch.cat([y.float(), second])
            points = images.negative_points.flatten(0, 1)
            x_points, y_points = torch.cat([x_points, points]), torch.cat([y_points, points])
            return PairViews(ready(x), ready(y), None, x_points, y_points)
        if self._augments_queries:
            photos = augment(photos, generator)
        return PairViews(ready(x), ready(y), ready(photos).reshape(images.negatives.shape), x_points, y_points)
