"""A checkpoint becomes a bundle that describes as its encoder does, without anything of the objective."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from export.exporting import write_export
from export.from_pytorch import DescriptionGraph, checkpoint_model, export_graph
from retrieval.artefact import record_files
from retrieval.bundle.exportable import ExportableModel
from retrieval.describer import Describer
from retrieval.errors import BundleError, ParameterError
from tests.places import pattern
from tests.training.small_encoder import small_encoder, small_recipe
from training.checkpoint import CheckpointError, CheckpointManifest, load_encoder, open_checkpoint, save_encoder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    recipe = small_recipe()
    encoder = small_encoder(recipe).trained("simclr", "toy, 12 photos", {"validation R@1 25 m": 0.5})
    return save_encoder(tmp_path_factory.mktemp("run") / "best", encoder, recipe, epoch=3).folder


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> ExportableModel:
    return checkpoint_model(checkpoint)


def test_the_bundle_describes_as_the_encoder(checkpoint: Path, model: ExportableModel, tmp_path: Path) -> None:
    bundle = write_export(model, tmp_path / "bundle")
    images = np.stack([np.asarray(pattern(seed, (96, 64))) for seed in range(5)])
    encoder = load_encoder(checkpoint)
    with torch.no_grad():
        theirs = encoder.net(encoder.normalisation.apply(torch.from_numpy(images).permute(0, 3, 1, 2))).numpy()
    assert float((Describer(bundle).describe(images) * theirs).sum(axis=1).min()) > 0.99999
    assert bundle.manifest.provenance == encoder.provenance
    assert bundle.manifest.provenance.training_data == "toy, 12 photos"
    card = (tmp_path / "bundle" / "MODEL_CARD.md").read_text()
    assert "| validation R@1 25 m | 50.0 % |" in card
    written = onnx.load(bundle.graph_path("fp32"))
    stated = {entry.key: entry.value for entry in written.metadata_props}
    assert stated["sightfix.objective"] == "simclr"
    assert stated["sightfix.descriptor_dim"] == "16"
    assert stated["sightfix.encoder_sha256"] == open_checkpoint(checkpoint).manifest.files["encoder.safetensors"].sha256


def test_a_graph_that_differs_is_not_written(model: ExportableModel, tmp_path: Path) -> None:
    damaged = onnx.ModelProto()
    damaged.CopyFrom(model.graph)
    weights = next(tensor for tensor in damaged.graph.initializer if len(tensor.dims) == 4)
    values = numpy_helper.to_array(weights).copy()
    values[0] *= 1.5
    weights.CopyFrom(numpy_helper.from_array(values, weights.name))
    with pytest.raises(BundleError, match=r"differs from PyTorch .*worst cosine 0\.\d+, wanted 0.99999") as caught:
        write_export(replace(model, graph=damaged), tmp_path / "bundle")
    assert caught.value.code == "parity_failed"
    assert list(tmp_path.iterdir()) == []


def test_a_graph_that_gives_nan_is_not_written(model: ExportableModel, tmp_path: Path) -> None:
    nothing = replace(model, original=lambda images: np.full((len(images), 16), np.nan, np.float32))
    with pytest.raises(BundleError, match="worst cosine nan"):
        write_export(nothing, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_errors(model: ExportableModel, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        checkpoint_model(tmp_path / "nothing")
    (tmp_path / "taken").mkdir()
    with pytest.raises(ParameterError, match="exists already"):
        write_export(model, tmp_path / "taken")


def test_a_truncated_checkpoint_is_refused_by_name(checkpoint: Path, tmp_path: Path) -> None:
    copied = tmp_path / "copied"
    shutil.copytree(checkpoint, copied)
    weights = copied / "encoder.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"encoder.safetensors: the file has \d+ bytes.*Copy"):
        checkpoint_model(copied)


def test_a_recipe_of_another_objective_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    copied = tmp_path / "copied"
    shutil.copytree(checkpoint, copied)
    manifest = CheckpointManifest.read(copied)
    recipe = copied / "recipe.json"
    recipe.write_text(recipe.read_text().replace('"simclr"', '"byol"'))
    files = {**manifest.files, "recipe.json": record_files(copied, ["recipe.json"])["recipe.json"]}
    manifest.model_copy(update={"files": files}).write(copied)
    with pytest.raises(CheckpointError, match=r"recipe.json: the recipe trains byol, the manifest says it was simclr"):
        checkpoint_model(copied)


class DependsOnPixels(nn.Module):
    """As many numbers a descriptor as there are bright pixels."""

    def forward(self, images: Tensor) -> Tensor:
        return images[:, images[0, 0].flatten().nonzero().flatten()[0] :].flatten(1)


def test_shapes_that_depend_on_pixels_cannot_be_exported() -> None:
    with pytest.raises(BundleError, match=r"cannot become an ONNX graph.*none from the values of the pixels") as caught:
        export_graph(DescriptionGraph(DependsOnPixels(), 0.0, 1.0), 16, 16, {})
    assert caught.value.code == "not_exportable"


def test_a_checkpoint_becomes_an_adaptable_bundle(checkpoint: Path, model: ExportableModel) -> None:
    assert [output.layer for output in model.dense_outputs] == ["layer3", "layer4"]
    chosen = checkpoint_model(checkpoint, ["2"])
    assert [output.layer for output in chosen.dense_outputs] == ["layer2"]
    with pytest.raises(ParameterError, match=r"no layer '9' that gives one map\. Choose among layer1, layer2"):
        checkpoint_model(checkpoint, ["9"])
