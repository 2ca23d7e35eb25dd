import errno
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from retrieval import __version__
from retrieval.artefact import FileRecord, hash_file
from retrieval.bundle import open_bundle
from retrieval.errors import ParameterError, StorageError
from tests.manifest_hash import write_manifest_hash
from tests.retrieval.refusal import refused
from tests.training.small_encoder import small_encoder, small_recipe
from training.backbones import WeightsMismatchError
from training.checkpoint import CheckpointError, load_encoder, open_checkpoint, save_encoder
from training.encoder import Encoder
from training.recipe_settings import Recipe

AGAIN = "Copy the artefact again from where it was made, or make it again."
FULL = "Free some space or choose another folder, then run the command again; nothing was published."


@pytest.fixture
def recipe() -> Recipe:
    return small_recipe("image.filter=bilinear", "network.l2_before_pool=true")


@pytest.fixture
def encoder(recipe: Recipe) -> Encoder:
    torch.manual_seed(0)
    return small_encoder(recipe).trained("simclr", "town, 60 photos", {"R@1": 0.5})


@pytest.fixture
def folder(tmp_path: Path, encoder: Encoder, recipe: Recipe) -> Path:
    save_encoder(tmp_path / "run" / "best", encoder, recipe, epoch=3)
    return tmp_path / "run" / "best"


def change_manifest(folder: Path, **changes: object) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    write_manifest_hash(path)


def describe(encoder: Encoder) -> torch.Tensor:
    with torch.inference_mode():
        return encoder.net(torch.linspace(-2, 2, 2 * 3 * 64 * 96).reshape(2, 3, 64, 96))


def test_an_encoder_comes_back_whole(folder: Path, encoder: Encoder, recipe: Recipe) -> None:
    torch.manual_seed(1)
    loaded = load_encoder(folder)
    assert not loaded.net.training
    assert torch.equal(describe(loaded), describe(encoder))
    assert (loaded.descriptor_dim, loaded.preprocessing, loaded.normalisation, loaded.provenance) == (
        encoder.descriptor_dim,
        encoder.preprocessing,
        encoder.normalisation,
        encoder.provenance,
    )
    checkpoint = open_checkpoint(folder)
    assert checkpoint.recipe == recipe
    assert (checkpoint.manifest.name, checkpoint.manifest.epoch) == (recipe.name, 3)
    assert sorted(entry.name for entry in folder.iterdir()) == [
        "encoder.safetensors",
        "manifest.json",
        "manifest.sha256",
        "recipe.json",
    ]
    assert [entry.name for entry in folder.parent.iterdir()] == ["best"]


def test_a_resized_transformer_in_another_memory_format_comes_back(tmp_path: Path) -> None:
    recipe = small_recipe("network.backbone=test_vit", "network.pooling=class_token")
    encoder = small_encoder(recipe)
    encoder.net.to(memory_format=torch.channels_last)
    save_encoder(tmp_path / "vit", encoder, recipe)
    loaded = load_encoder(tmp_path / "vit")
    saved = encoder.net.state_dict()
    assert saved.keys() == loaded.net.state_dict().keys()
    assert all(torch.equal(value, saved[name]) for name, value in loaded.net.state_dict().items())
    # Not to the last bit: some processors convolve the two memory formats in another order.
    torch.testing.assert_close(describe(loaded), describe(encoder), rtol=0, atol=1e-5)


def test_the_trainer_state_stays_out_of_the_way(tmp_path: Path, encoder: Encoder, recipe: Recipe) -> None:
    state = {"step": 7, "weights": torch.ones(3)}
    checkpoint = save_encoder(
        tmp_path / "last", encoder, recipe, write_trainer_state=lambda path: torch.save(state, path)
    )
    assert torch.load(checkpoint.trainer_state(), weights_only=True)["step"] == 7
    (tmp_path / "last" / "trainer.ckpt").unlink()
    assert torch.equal(describe(load_encoder(tmp_path / "last")), describe(encoder))
    with pytest.raises(CheckpointError, match=r"trainer.ckpt: the file cannot be read"):
        checkpoint.trainer_state()


def test_a_checkpoint_without_trainer_state_cannot_be_resumed(folder: Path) -> None:
    text = (
        f"{folder}: the checkpoint holds an encoder but no trainer's state, so training cannot resume from it. "
        "Give the `last` checkpoint of the run."
    )
    with refused(CheckpointError, text, "not_resumable"):
        open_checkpoint(folder).trainer_state()


def test_what_is_not_a_checkpoint_is_refused(tmp_path: Path) -> None:
    text = (
        f"{tmp_path}: there is no readable manifest.json (No such file or directory). Give the folder of a checkpoint."
    )
    with refused(CheckpointError, text, "checkpoint_damaged"):
        load_encoder(tmp_path)
    bundle = open_bundle().folder
    with refused(
        CheckpointError, f"{bundle / 'manifest.json'}: this is a bundle, not a checkpoint.", "checkpoint_damaged"
    ):
        load_encoder(bundle)


def test_another_format_version_is_refused(folder: Path) -> None:
    change_manifest(folder, format_version=2)
    text = (
        f"{folder / 'manifest.json'}: format version 2 is unknown to sightfix {__version__} (it reads 1). "
        "Install a matching sightfix, or make the checkpoint again with this one."
    )
    with refused(CheckpointError, text, "checkpoint_damaged"):
        load_encoder(folder)


def test_a_truncated_encoder_is_refused(folder: Path) -> None:
    path = folder / "encoder.safetensors"
    size = path.stat().st_size
    os.truncate(path, 1000)
    text = f"{path}: the file has 1000 bytes, its manifest says {size}. {AGAIN}"
    with refused(CheckpointError, text, "checkpoint_damaged"):
        load_encoder(folder)


def replace_recorded(folder: Path, name: str) -> None:
    """Make the manifest agree with a file that was changed on purpose."""
    path = folder / name
    record = FileRecord(sha256=hash_file(path), size=path.stat().st_size).model_dump()
    files = json.loads((folder / "manifest.json").read_text())["files"]
    change_manifest(folder, files={**files, name: record})


def test_weights_that_do_not_fit_list_their_keys(folder: Path) -> None:
    path = folder / "encoder.safetensors"
    tensors = load_file(path)
    del tensors["pool.p"]
    tensors["projection.weight"] = torch.zeros(8, 96)
    save_file({**tensors, "head.weight": torch.zeros(1)}, path)
    replace_recorded(folder, path.name)
    text = (
        f"{path}: the weights do not fit: missing pool.p; unexpected head.weight; "
        "of another shape projection.weight (8, 96) instead of (16, 96). "
        "Check that recipe and weights are of the same run."
    )
    with refused(WeightsMismatchError, text, "weights_mismatch"):
        load_encoder(folder)


def test_a_recipe_of_another_time_is_refused(folder: Path) -> None:
    path = folder / "recipe.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "colour": "red"}))
    write_manifest_hash(path)
    replace_recorded(folder, path.name)
    text = (
        f"{path}: the recipe is damaged at colour (Extra inputs are not permitted). "
        "Copy the checkpoint again from where it was made, or train again."
    )
    with refused(CheckpointError, text, "checkpoint_damaged"):
        open_checkpoint(folder)


def write_to_full_disk(path: Path) -> None:
    """torch.save as it meets a full disk."""
    path.symlink_to("/dev/full")
    torch.save({"weights": torch.ones(1000)}, path)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full to stand for a full disk")
def test_a_full_disk_leaves_the_previous_checkpoint(folder: Path, encoder: Encoder, recipe: Recipe) -> None:
    before = describe(encoder)
    torch.nn.init.zeros_(encoder.net.projection.weight)
    text = f"{folder}: writing failed (No space left on device). {FULL}"
    with refused(StorageError, text, "storage"):
        save_encoder(folder, encoder, recipe, epoch=4, write_trainer_state=write_to_full_disk)
    assert torch.equal(describe(load_encoder(folder)), before)
    assert open_checkpoint(folder).manifest.epoch == 3
    assert [entry.name for entry in folder.parent.iterdir()] == ["best"]


def test_a_disk_that_fills_while_flushing_leaves_the_previous_checkpoint(
    folder: Path, encoder: Encoder, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", no_space)
        with refused(StorageError, f"{folder}: writing failed (No space left on device). {FULL}", "storage"):
            save_encoder(folder, encoder, recipe, epoch=4)
    assert open_checkpoint(folder).manifest.epoch == 3
    assert [entry.name for entry in folder.parent.iterdir()] == ["best"]


def test_a_crash_at_any_moment_leaves_one_whole_checkpoint(folder: Path, encoder: Encoder, recipe: Recipe) -> None:
    (folder.parent / ".tmp-best").mkdir()  # killed while writing
    (folder.parent / ".tmp-best" / "encoder.safetensors").write_bytes(b"half")
    assert open_checkpoint(folder).manifest.epoch == 3
    folder.rename(folder.parent / ".previous-best")  # killed between the two renames
    assert open_checkpoint(folder).manifest.epoch == 3
    assert torch.equal(describe(load_encoder(folder)), describe(encoder))
    save_encoder(folder, encoder, recipe, epoch=4)
    assert open_checkpoint(folder).manifest.epoch == 4
    assert [entry.name for entry in folder.parent.iterdir()] == ["best"]


def test_errors_of_the_trainer_are_its_own(folder: Path, encoder: Encoder, recipe: Recipe) -> None:
    def broken(path: Path) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(RuntimeError, match="illegal memory access"):
        save_encoder(folder, encoder, recipe, write_trainer_state=broken)
    assert open_checkpoint(folder).manifest.epoch == 3


def test_something_else_in_its_place_is_kept(tmp_path: Path, encoder: Encoder, recipe: Recipe) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"photo")
    text = f"{tmp_path / 'photos'}: the folder exists and is not a checkpoint. Choose another, or remove it."
    with refused(ParameterError, text, "validation_error"):
        save_encoder(tmp_path / "photos", encoder, recipe)
    assert (tmp_path / "photos" / "a.jpg").read_bytes() == b"photo"
