"""From the photos of a batch to the two views an objective compares."""

from dataclasses import dataclass

import torch
from torch import Tensor

from training.augmentation import BatchAugmentation, flip
from training.normalisation import InputNormalisation
from training.pair_images import PairImages
from training.recipe_settings import Recipe


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
