"""What is to be compared."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from retrieval.errors import SightfixError
from retrieval.evaluation import Protocol
from retrieval.evaluation.eval_set import EvalSet
from training.comparison.report import METHOD_NAMES, UNTRAINED
from training.recipe_settings import Recipe
from training.run.train import TrainingPhotos

RECALL_AT: Final = (1, 5, 10)
DEFAULT_RADII_M: Final = (25.0, 10.0)
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class ComparisonError(SightfixError):
    """A comparison that cannot begin, or go on."""

    default_code = "comparison"


@dataclass(frozen=True)
class Comparison:
    """What is trained, and what it is evaluated on.

    Attributes:
        recipes: each trained with every seed.
        photos: to train on; may be None where there are only checkpoints.
        eval_sets: to measure on.
        seeds: how many: 0 to seeds − 1.
        checkpoints: folders of existing checkpoints, by label: further rows.
        radii_m: a match within this distance is a true one.
        baseline: a method, or the label of a row: what differences are to.

    Raises:
        ComparisonError: nothing to compare, or to measure on; names given twice; seeds below 1; an unknown baseline.
        ParameterError: radii that are not above 0.
    """

    recipes: tuple[Recipe, ...]
    photos: TrainingPhotos | None
    eval_sets: tuple[EvalSet, ...]
    seeds: int = 3
    checkpoints: Mapping[str, Path] = field(default_factory=dict)
    radii_m: tuple[float, ...] = DEFAULT_RADII_M
    baseline: str = "triplet"

    def __post_init__(self) -> None:
        self._check_what_there_is()
        self._check_names()
        if self.seeds < 1:
            raise ComparisonError(f"{self.seeds} seeds train nothing", remedy="Give --seeds 1 or more")
        if len(set(self.radii_m)) < len(self.radii_m):
            raise ComparisonError("a radius is given twice", remedy="Give each --radius once")
        labels = [recipe.name for recipe in self.recipes] + list(self.checkpoints)
        if self.baseline not in METHOD_NAMES and self.baseline not in labels:
            raise ComparisonError(
                f"there is no method or row {self.baseline!r} to be the baseline",
                remedy=f"Choose one of {', '.join([*METHOD_NAMES, *labels])}",
            )
        _ = self.protocol

    @property
    def protocol(self) -> Protocol:
        """How is counted."""
        return Protocol(radii_m=self.radii_m, recall_at=RECALL_AT, convention="solvable", grouping="place")

    @property
    def runs(self) -> list[tuple[Recipe, int]]:
        """Every recipe with every seed: one seed of all recipes before the next, so that rows can soon be compared."""
        return [(recipe, seed) for seed in range(self.seeds) for recipe in self.recipes]

    def _check_what_there_is(self) -> None:
        if not self.recipes and not self.checkpoints:
            raise ComparisonError(
                "there is nothing to compare",
                remedy="Give recipes, such as simclr-efficientnet-lite0 triplet-efficientnet-lite0, or --checkpoint",
            )
        if self.recipes and self.photos is None:
            raise ComparisonError("there are no photos to train on", remedy="Add --train SPEC")
        if not self.eval_sets:
            raise ComparisonError(
                "there is no evaluation set",
                remedy="Add --eval NAME --eval-database SPEC --eval-queries SPEC",
            )

    def _check_names(self) -> None:
        rows = [recipe.name for recipe in self.recipes] + list(self.checkpoints)
        for what, names in (("row", rows), ("evaluation set", [photos.name for photos in self.eval_sets])):
            for name, count in Counter(names).items():
                if count > 1:
                    raise ComparisonError(
                        f"the {what} {name!r} is given {count} times", remedy="Give each a name of its own"
                    )
                if not _NAME.fullmatch(name):
                    raise ComparisonError(
                        f"{name!r} cannot be the name of a {what}",
                        remedy="Use letters, digits, dots, dashes and underscores, a letter or digit first",
                    )
        if UNTRAINED in rows:
            raise ComparisonError(
                f"the label {UNTRAINED!r} is that of the net before training", remedy="Choose another label"
            )


def with_seed(recipe: Recipe, seed: int) -> Recipe:
    """The same recipe with another seed."""
    return recipe.model_copy(update={"training": recipe.training.model_copy(update={"seed": seed})})
