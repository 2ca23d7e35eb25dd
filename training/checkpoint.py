"""Checkpoints: an encoder with its recipe and, while training goes on, the trainer's state.

A checkpoint is a directory: `encoder.safetensors` (the descriptor net alone), `recipe.json`, optionally `trainer.ckpt`,
and the manifest. It is written beside its place and renamed, so that a full disk leaves the previous one as it was.
"""

import errno
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from pydantic import Field, ValidationError
from safetensors.torch import save

from retrieval.artefact import (
    Manifest,
    flush_to_disk,
    record_files,
    rename_into_place,
    storage_errors,
    verify_files,
    write_flushed,
)
from retrieval.bundle import Provenance
from retrieval.errors import ArtefactError, ParameterError
from retrieval.images import Preprocessing
from training.backbones import InputNormalisation, WeightsFileError, load_strictly, read_weights
from training.encoder import Encoder, build_encoder
from training.recipe_settings import Recipe

ENCODER_NAME: Final = "encoder.safetensors"
RECIPE_NAME: Final = "recipe.json"
TRAINER_NAME: Final = "trainer.ckpt"
_AGAIN: Final = "Copy the checkpoint again from where it was made, or train again"

# torch reports a full disk in its own words, and without the system's error number.
_TORCH_WRITE_FAILURES: Final = ("iostream error", "unexpected pos", "PytorchStreamWriter")


class CheckpointError(ArtefactError):
    """A checkpoint that cannot be opened."""

    default_code = "checkpoint_damaged"


class CheckpointManifest(Manifest):
    """The manifest of a checkpoint.

    Attributes:
        name: of the recipe.
        descriptor_dim: D.
        preprocessing: from a photo to (H, W, 3) uint8 RGB.
        normalisation: from 8-bit RGB to the net's input.
        provenance: backbone, weights, licence, objective, photos it was trained on, recalls.
        epoch: how many epochs were trained.
    """

    kind: Literal["checkpoint"] = "checkpoint"
    format_version: Literal[1] = 1
    name: str = Field(min_length=1)
    descriptor_dim: int = Field(ge=1)
    preprocessing: Preprocessing
    normalisation: InputNormalisation
    provenance: Provenance
    epoch: int = Field(default=0, ge=0)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """An opened checkpoint, its encoder and recipe verified.

    Attributes:
        folder: where it is.
        manifest: what it states.
        recipe: the full recipe it was trained by.
    """

    folder: Path
    manifest: CheckpointManifest
    recipe: Recipe

    def trainer_state(self) -> Path:
        """The trainer's state, verified, to resume from.

        Raises:
            CheckpointError: it holds none, or a damaged one.
        """
        if TRAINER_NAME not in self.manifest.files:
            raise CheckpointError(
                "the checkpoint holds an encoder but no trainer's state, so training cannot resume from it",
                where=str(self.folder),
                remedy="Give the `last` checkpoint of the run",
                code="not_resumable",
            )
        verify_files(self.folder, self.manifest.files, names=[TRAINER_NAME], error_type=CheckpointError)
        return self.folder / TRAINER_NAME


def save_encoder(
    folder: Path,
    encoder: Encoder,
    recipe: Recipe,
    *,
    epoch: int = 0,
    write_trainer_state: Callable[[Path], None] | None = None,
) -> Checkpoint:
    """Write a checkpoint, in the place of a previous one if there is one.

    Args:
        folder: where the checkpoint shall be.
        encoder: its net may be on any device; momentum encoders and heads are no part of it.
        recipe: that it was trained by, from which `load_encoder` builds the net.
        epoch: how many epochs were trained.
        write_trainer_state: writes the trainer's state to the path it is given, such as Lightning's
            `trainer.save_checkpoint`.

    Raises:
        ParameterError: something else is at `folder`.
        StorageError: the disk refuses. Nothing is left behind, and the previous checkpoint is intact.
    """
    with storage_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        _finish_replacement(folder)
        _check_replaceable(folder)
        temporary = folder.with_name(f".tmp-{folder.name}")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        try:
            _write_files(temporary, encoder, recipe, epoch, write_trainer_state)
            _replace(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return open_checkpoint(folder)


def open_checkpoint(folder: Path) -> Checkpoint:
    """Open a checkpoint and verify its encoder and recipe; the trainer's state is verified when it is asked for.

    Raises:
        CheckpointError: not a checkpoint, another format version, a missing or damaged file, or a recipe of another
            objective.
    """
    if not folder.exists() and _aside(folder).exists():
        folder = _aside(folder)
    manifest = CheckpointManifest.read(folder, CheckpointError)
    missing = [name for name in (ENCODER_NAME, RECIPE_NAME) if name not in manifest.files]
    if missing:
        raise CheckpointError(f"the manifest names no {', '.join(missing)}", where=str(folder), remedy=_AGAIN)
    verify_files(folder, manifest.files, names=[ENCODER_NAME, RECIPE_NAME], error_type=CheckpointError)
    path = folder / RECIPE_NAME
    try:
        recipe = Recipe.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        raise CheckpointError(
            f"the recipe is damaged at {'.'.join(map(str, first['loc']))} ({first['msg']})",
            where=str(path),
            remedy=_AGAIN,
        ) from error
    stated = manifest.provenance.objective
    if stated is not None and stated != recipe.objective.name:
        raise CheckpointError(
            f"the recipe trains {recipe.objective.name}, the manifest says it was {stated}",
            where=str(path),
            remedy="Put back the recipe it was trained by",
        )
    return Checkpoint(folder, manifest, recipe)


def checkpoint_exists(folder: Path) -> bool:
    """Whether there is something for `open_checkpoint` to open, if only what a crash left while replacing it."""
    return folder.exists() or _aside(folder).exists()


def remove_checkpoint(folder: Path) -> None:
    """Remove a checkpoint, if there is one, and what a crash left while replacing it.

    Raises:
        StorageError: the disk refuses.
    """
    with storage_errors(folder):
        for path in (folder, _aside(folder)):
            if path.exists():
                shutil.rmtree(path)


def load_encoder(folder: Path) -> Encoder:
    """Load a checkpoint's encoder on the CPU in evaluation mode, every weight from the file; needs no trainer.

    Raises:
        CheckpointError: as `open_checkpoint`.
        WeightsMismatchError: the weights do not fit the recipe's net; lists the keys.
    """
    checkpoint = open_checkpoint(folder)
    manifest, path = checkpoint.manifest, checkpoint.folder / ENCODER_NAME
    network = checkpoint.recipe.network.model_copy(update={"pretrained": "none"})
    encoder = build_encoder(network, manifest.preprocessing)
    try:
        tensors = read_weights(path)
    except WeightsFileError as error:
        raise CheckpointError(error.what, where=error.where, remedy=_AGAIN) from error
    load_strictly(encoder.net, tensors, where=path, remedy="Check that recipe and weights are of the same run")
    encoder.net.eval()
    return Encoder(
        net=encoder.net,
        descriptor_dim=encoder.descriptor_dim,
        preprocessing=manifest.preprocessing,
        normalisation=manifest.normalisation,
        provenance=manifest.provenance,
    )


def _write_files(
    temporary: Path,
    encoder: Encoder,
    recipe: Recipe,
    epoch: int,
    write_trainer_state: Callable[[Path], None] | None,
) -> None:
    # On the CPU and contiguous: channels_last tensors are not, and safetensors takes no others.
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in encoder.net.state_dict().items()}
    write_flushed(temporary / ENCODER_NAME, save(tensors, metadata={"format": "pt"}))
    write_flushed(temporary / RECIPE_NAME, recipe.model_dump_json(indent=2).encode() + b"\n")
    names = [ENCODER_NAME, RECIPE_NAME]
    if write_trainer_state is not None:
        with _torch_write_failures():
            write_trainer_state(temporary / TRAINER_NAME)
        names.append(TRAINER_NAME)
    CheckpointManifest(
        name=recipe.name,
        descriptor_dim=encoder.descriptor_dim,
        preprocessing=encoder.preprocessing,
        normalisation=encoder.normalisation,
        provenance=encoder.provenance,
        epoch=epoch,
        files=record_files(temporary, names),
    ).write(temporary)


@contextmanager
def _torch_write_failures() -> Iterator[None]:
    """Turn torch's failure to write, which in practice is a full disk, into the system's error."""
    try:
        yield
    except RuntimeError as error:
        if not any(words in str(error) for words in _TORCH_WRITE_FAILURES):
            raise
        raise OSError(errno.ENOSPC, "No space left on device") from error


def _check_replaceable(folder: Path) -> None:
    if not folder.exists():
        return
    try:
        CheckpointManifest.read(folder, CheckpointError)
    except CheckpointError as error:
        raise ParameterError(
            "the folder exists and is not a checkpoint", where=str(folder), remedy="Choose another, or remove it"
        ) from error


def _replace(temporary: Path, folder: Path) -> None:
    """Put a finished checkpoint in its place; a directory cannot be replaced in one step, so the old steps aside."""
    if folder.exists():
        folder.rename(_aside(folder))
    try:
        rename_into_place(temporary, folder)
    finally:
        _finish_replacement(folder)


def _finish_replacement(folder: Path) -> None:
    """Remove the old checkpoint when the new one is in its place, else put it back there."""
    aside = _aside(folder)
    if not aside.exists():
        return
    if folder.exists():
        shutil.rmtree(aside, ignore_errors=True)
    else:
        aside.rename(folder)
        flush_to_disk(folder.parent)


def _aside(folder: Path) -> Path:
    """Where a checkpoint is while it is being replaced; only a crash leaves one there."""
    return folder.with_name(f".previous-{folder.name}")
