"""The checkpoints of a comparison: what identifies one, and the net of a recipe before training."""

import hashlib
from pathlib import Path

import torch

from retrieval.errors import ArtefactError
from training.checkpoint import ENCODER_NAME, Checkpoint, open_checkpoint, save_encoder
from training.comparison.methods import UNTRAINED, ComparedRow
from training.encoder import build_encoder
from training.recipe_settings import Recipe


def checkpoint_hash(checkpoint: Checkpoint) -> str:
    """SHA-256 in hex of all that decides its descriptors: the weights and what is done to a photo before."""
    manifest = checkpoint.manifest
    parts = (
        manifest.files[ENCODER_NAME].sha256,
        manifest.preprocessing.model_dump_json(),
        manifest.normalisation.model_dump_json(),
        checkpoint.recipe.network.model_dump_json(),
    )
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def network_hash(recipe: Recipe) -> str:
    """Twelve hex digits that stand for a recipe's network and image settings."""
    settings = f"{recipe.network.model_dump_json()}\n{recipe.image.model_dump_json()}"
    return hashlib.sha256(settings.encode()).hexdigest()[:12]


def untrained_checkpoint(recipe: Recipe, folder: Path) -> Checkpoint:
    """The recipe's encoder before training, saved, or opened where it was saved before.

    New layers are drawn as training with seed 0 draws them.

    Raises:
        SightfixError: the net cannot be built; see `build_encoder`.
        StorageError: the disk refuses.
    """
    try:
        checkpoint = open_checkpoint(folder)
        if network_hash(checkpoint.recipe) == network_hash(recipe):
            return checkpoint
    except ArtefactError:
        pass
    state = torch.random.get_rng_state()
    torch.manual_seed(0)
    try:
        encoder = build_encoder(recipe.network, recipe.image)
    finally:
        torch.random.set_rng_state(state)
    return save_encoder(folder, encoder, recipe)


def checkpoint_row(checkpoint: Checkpoint, label: str, folder: str) -> ComparedRow:
    """The row of a checkpoint; one that was never trained is `untrained`, whatever its recipe would do."""
    manifest = checkpoint.manifest
    image = manifest.preprocessing
    return ComparedRow(
        label=label,
        method=manifest.provenance.objective or UNTRAINED,
        backbone=checkpoint.recipe.network.backbone,
        size=f"{manifest.descriptor_dim}-D, {image.height}×{image.width}",
        folder=folder,
    )
