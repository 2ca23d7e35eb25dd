"""The error of a comparison."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from retrieval.errors import SightfixError
from retrieval.evaluation import Protocol
from retrieval.evaluation.eval_set import EvalSet
from training.recipe_settings import Recipe
from training.run.train import TrainingPhotos


class ComparisonError(SightfixError):
    """A comparison that cannot begin, or go on."""

    default_code = "comparison"


# Methods in the order and the families of the paper (VG-SSL, WACV 2025, its results table).

UNTRAINED: Final = "untrained"

# In the paper's order.
METHOD_NAMES: Final[dict[str, str]] = {
    UNTRAINED: "Untrained",
    "triplet": "Triplet",
    "simclr": "SimCLR",
    "mocov2": "MoCov2",
    "byol": "BYOL",
    "simsiam": "SimSiam",
    "barlow_twins": "Barlow Twins",
    "vicreg": "VICReg",
}

CONTRASTIVE: Final = "contrastive"

INFORMATION_MAXIMISING: Final = "information-maximising"

SELF_DISTILLATION: Final = "self-distillation"

FAMILIES: Final[dict[str, tuple[str, ...]]] = {
    CONTRASTIVE: ("simclr", "mocov2"),
    INFORMATION_MAXIMISING: ("barlow_twins", "vicreg"),
    SELF_DISTILLATION: ("byol", "simsiam"),
}

# The paper's conclusion: the first of each pair is above the second.
ORDERING: Final = ((CONTRASTIVE, SELF_DISTILLATION), (INFORMATION_MAXIMISING, SELF_DISTILLATION))

CONTRASTS: Final = (*ORDERING, (CONTRASTIVE, INFORMATION_MAXIMISING))


def family_of(method: str) -> str | None:
    """The family of a method, or None for the triplet baseline and the untrained net."""
    return next((name for name, members in FAMILIES.items() if method in members), None)


@dataclass(frozen=True, slots=True)
class ComparedRow:
    """A row of the table: one recipe with all its seeds, one checkpoint, or a net before training.

    Attributes:
        label: the recipe's name, the checkpoint's label, or `untrained`.
        method: the objective, or `untrained`.
        backbone: timm's name.
        size: dimensions of the descriptor, height and width of the input, for people.
        folder: a name of its own for files, distinct for each row.
    """

    label: str
    method: str
    backbone: str
    size: str
    folder: str

    @property
    def method_name(self) -> str:
        """The method as the paper writes it."""
        return METHOD_NAMES.get(self.method, self.method)


def paper_order(rows: list[ComparedRow]) -> list[ComparedRow]:
    """Rows by backbone, in the order in which these come first, and within a backbone in the paper's order."""
    backbones = list(dict.fromkeys(row.backbone for row in rows))
    methods = list(METHOD_NAMES)
    place = {method: index for index, method in enumerate(methods)}
    return sorted(rows, key=lambda row: (backbones.index(row.backbone), place.get(row.method, len(methods))))


# What is to be compared.

RECALL_AT: Final = (1, 5, 10)

DEFAULT_RADII_M: Final = (25.0, 10.0)

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class ComparisonPlan:
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
