"""The objectives by name."""

from collections.abc import Mapping
from typing import Any, Final

from pydantic import ValidationError

from training.objectives.contrastive import MocoV2, Simclr, Triplet
from training.objectives.information_maximising import BarlowTwins, Vicreg
from training.objectives.objective import Objective, ObjectiveError, ObjectiveSettings
from training.objectives.self_distillation import Byol, Simsiam

OBJECTIVES: Final[dict[str, Any]] = {
    "triplet": Triplet,
    "simclr": Simclr,
    "mocov2": MocoV2,
    "byol": Byol,
    "simsiam": Simsiam,
    "barlow_twins": BarlowTwins,
    "vicreg": Vicreg,
}


def objective_class(name: str) -> type[Objective]:
    """The objective of that name.

    Raises:
        ObjectiveError: no objective is called so; lists those there are.
    """
    if name not in OBJECTIVES:
        raise ObjectiveError(
            f"there is no objective {name!r}", remedy=f"Choose one of {', '.join(OBJECTIVES)}", code="unknown_objective"
        )
    found: type[Objective] = OBJECTIVES[name]
    return found


def objective_settings(name: str, keys: Mapping[str, Any]) -> ObjectiveSettings:
    """An objective's settings from a recipe's keys; what is not given has the value of VG-SSL's final configuration.

    Raises:
        ObjectiveError: no such objective, an unknown key (lists those there are) or a value outside its domain.
    """
    settings_class = objective_class(name).settings_class
    try:
        return settings_class(**keys)
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()]
        raise ObjectiveError(
            f"settings that {name} does not take: {'; '.join(faults)}",
            remedy=f"Its settings are {', '.join(settings_class.model_fields)}",
            code="objective_settings",
        ) from error


def build_objective(name: str, descriptor_dim: int, keys: Mapping[str, Any]) -> Objective:
    """An objective with fresh heads.

    Args:
        name: a key of `OBJECTIVES`.
        descriptor_dim: D of the encoder.
        keys: the objective's own keys of a recipe.

    Raises:
        ObjectiveError: no such objective, or settings that are not its own.
    """
    chosen: Any = objective_class(name)
    built: Objective = chosen(descriptor_dim, objective_settings(name, keys))
    return built
