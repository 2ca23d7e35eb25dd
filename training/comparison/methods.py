"""Methods in the order and the families of the paper (VG-SSL, WACV 2025, its results table)."""

from dataclasses import dataclass
from typing import Final

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
