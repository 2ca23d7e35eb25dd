"""How far a run is, and everything that it needs to go on exactly: what `trainer.ckpt` holds.

Tensors and plain values only, so that torch reads it back without unpickling code. A run goes on only as the same
recipe on the same photos.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from retrieval.errors import SightfixError
from training.checkpoint import CheckpointError
from training.geopair import EpochBatches, PhotoTable
from training.objectives.pair_model import PairModel
from training.photos.cache import PhotoCache
from training.recipe_settings import Recipe

if TYPE_CHECKING:
    from lightning.fabric import Fabric

_FORMAT: Final = 1

# Settings that may change from one part of a run to the next.
_MAY_CHANGE: Final = frozenset(
    {"description", "training.epochs", "training.log_every_steps", "training.save_every_minutes"}
)


class OtherRunError(SightfixError):
    """The folder holds a run of another recipe, or of other photos."""

    default_code = "other_run"


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands.

    Attributes:
        photos: a hash of the photos that it trains on, and of where they were taken.
        processes: that train together.
        epoch: epochs completed.
        next_batch: of the running epoch, per process; 0 between epochs.
        step: steps of the optimiser so far.
        loss_sum, loss_batches: over the running epoch's batches.
        best_recall: the highest so far, or -1.
        best_epoch: after which it was measured; 0 for none.
        without_better: validations since then.
        finished: whether training is over.
    """

    photos: str
    processes: int
    epoch: int = 0
    next_batch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    loss_batches: int = 0
    best_recall: float = -1.0
    best_epoch: int = 0
    without_better: int = 0
    finished: bool = False

    def with_recall(self, recall: float) -> "Progress":
        """After a validation that followed the epoch just completed."""
        if recall > self.best_recall:
            return replace(self, best_recall=recall, best_epoch=self.epoch, without_better=0)
        return replace(self, without_better=self.without_better + 1)


@dataclass(frozen=True)
class RunState:
    """A saved run.

    Attributes:
        progress: where it stands.
        batches: of the running epoch, or None between epochs: they were mined with weights that are no more.
        geopairs: state of negative mining, from `GeoPairs.state_dict`.
    """

    progress: Progress
    batches: EpochBatches | None
    geopairs: Mapping[str, NDArray[Any]]


def write_run_state(
    path: Path, fabric: "Fabric", model: PairModel, optimiser: torch.optim.Optimizer, state: RunState
) -> None:
    """Write everything to a file, in place (a checkpoint is written to a temporary folder)."""
    content = {
        "format": _FORMAT,
        "progress": asdict(state.progress),
        "model": model.state_dict(),
        "optimiser": optimiser.state_dict(),
        "precision": fabric.strategy.precision.state_dict(),
        # This key has the name that runs of earlier versions wrote.
        "plan": None if state.batches is None else _as_tensors(state.batches.to_arrays()),
        "geopairs": _as_tensors(state.geopairs),
    }
    torch.save(content, path)


def read_run_state(path: Path, fabric: "Fabric", model: PairModel, optimiser: torch.optim.Optimizer) -> RunState:
    """Read it back and put model, optimiser and loss scaling in the state they were in.

    Raises:
        CheckpointError: another format, or weights of another net.
    """
    content = torch.load(path, map_location="cpu", weights_only=True)
    if content.get("format") != _FORMAT:
        raise CheckpointError(
            f"the trainer's state has format {content.get('format')}, this version reads {_FORMAT}",
            where=str(path),
            remedy="Train again with --restart",
        )
    try:
        model.load_state_dict(content["model"])
    except RuntimeError as error:
        raise CheckpointError(
            f"the trainer's state is of another net: {str(error).splitlines()[-1].strip()}",
            where=str(path),
            remedy="Train again with --restart, or into another folder",
        ) from error
    optimiser.load_state_dict(content["optimiser"])
    fabric.strategy.precision.load_state_dict(content["precision"])
    batches = content["plan"]
    return RunState(
        Progress(**content["progress"]),
        None if batches is None else EpochBatches.from_arrays(_as_arrays(batches)),
        _as_arrays(content["geopairs"]),
    )


def _as_tensors(arrays: Mapping[str, NDArray[Any]]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}


def _as_arrays(tensors: Mapping[str, torch.Tensor]) -> dict[str, NDArray[Any]]:
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def hash_photos(photos: PhotoCache, table: PhotoTable) -> str:
    """What identifies the photos of a run: their ids, sessions and places, in order; SHA-256 in hex."""
    digest = hashlib.sha256(np.ascontiguousarray(table.points).tobytes())
    for reference in photos.references:
        digest.update(f"{reference.id}\n{reference.session}\n".encode())
    return digest.hexdigest()


def check_same_recipe(before: Recipe, now: Recipe, folder: Path) -> None:
    """Refuse to go on with another recipe; the number of epochs may change, and how often is logged and saved.

    Raises:
        OtherRunError: names the keys that differ.
    """
    old, new = dict(_flat(before.model_dump())), dict(_flat(now.model_dump()))
    keys = sorted((old.keys() | new.keys()) - _MAY_CHANGE)
    _refuse([key for key in keys if old.get(key) != new.get(key)], folder)


def check_same_photos(before: Progress, now: Progress, folder: Path) -> None:
    """Refuse to go on with other photos or another number of processes.

    Raises:
        OtherRunError: says what differs.
    """
    differing = ["the photos"] if before.photos != now.photos else []
    if before.processes != now.processes:
        differing.append("the number of devices")
    _refuse(differing, folder)


def _refuse(differing: list[str], folder: Path) -> None:
    if differing:
        raise OtherRunError(
            f"the folder holds a run that differs in {', '.join(differing)}",
            where=str(folder),
            remedy="Choose another --out, give the same command again, or begin anew with --restart",
        )


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
