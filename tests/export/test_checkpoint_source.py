"""A checkpoint becomes a bundle that describes as its encoder does, without anything of the objective."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from export import checkpoint_bundle
from export.checkpoint_bundle import export_checkpoint
from retrieval.bundle import ParityReport
from retrieval.describer import Describer
from retrieval.errors import BundleError, ParameterError
from tests.places import pattern
from tests.training.small_encoder import small_encoder, small_recipe
from training.checkpoint import CheckpointError, load_encoder, save_encoder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    recipe = small_recipe()
    encoder = small_encoder(recipe).trained("simclr", "toy, 12 photos", {"validation R@1 25 m": 0.5})
    return save_encoder(tmp_path_factory.mktemp("run") / "best", encoder, recipe, epoch=3).folder


def test_the_bundle_describes_as_the_encoder(checkpoint: Path, tmp_path: Path) -> None:
    bundle = export_checkpoint(checkpoint, tmp_path / "bundle")
    images = np.stack([np.asarray(pattern(seed, (96, 64))) for seed in range(5)])
    encoder = load_encoder(checkpoint)
    with torch.no_grad():
        theirs = encoder.net(encoder.normalisation.apply(torch.from_numpy(images).permute(0, 3, 1, 2))).numpy()
    assert float((Describer(bundle).describe(images) * theirs).sum(axis=1).min()) > 0.99999
    assert bundle.manifest.provenance == encoder.provenance
    assert bundle.manifest.provenance.training_data == "toy, 12 photos"
    card = (tmp_path / "bundle" / "MODEL_CARD.md").read_text()
    assert "| validation R@1 25 m | 50.0 % |" in card
    model = onnx.load(bundle.graph_path("fp32"))
    assert {entry.key: entry.value for entry in model.metadata_props}["sightfix.objective"] == "simclr"


def test_a_graph_that_differs_is_not_written(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    differing = ParityReport(reference="PyTorch", images=1, min_cosine=float("nan"))
    monkeypatch.setattr(checkpoint_bundle, "compare_with_pytorch", lambda *_: differing)
    with pytest.raises(BundleError, match="differs from PyTorch"):
        export_checkpoint(checkpoint, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_errors(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        export_checkpoint(tmp_path / "nothing", tmp_path / "bundle")
    (tmp_path / "taken").mkdir()
    with pytest.raises(ParameterError, match="exists already"):
        export_checkpoint(checkpoint, tmp_path / "taken")
