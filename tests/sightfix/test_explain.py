"""`sightfix explain` on made-up places, with the shipped model's net and with a checkpoint."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

from retrieval.describer import Describer
from retrieval.errors import ArtefactError, ImageError, MissingExtraError, ParameterError
from retrieval.images import read_image
from sightfix.commands.explain import explain
from tests.conftest import PublishedPlaces
from tests.forked import sightfix
from tests.training.small_encoder import small_encoder, small_recipe
from training.checkpoint import save_encoder
from training.heat_maps import energy_share, heat_maps

APP = typer.Typer()
APP.command()(explain)


def run(*arguments: str | Path) -> str:
    result = CliRunner().invoke(APP, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    recipe = small_recipe()
    return save_encoder(tmp_path_factory.mktemp("run") / "best", small_encoder(recipe), recipe).folder


def test_a_pair_with_the_shipped_models_net(published: PublishedPlaces, describer: Describer, tmp_path: Path) -> None:
    """The score is the one that the shipped bundle, exported from the same net, gives the pair."""
    paths = [published.places.rows[row].path for row in (2, 7)]
    shown = run(*paths, "--out", tmp_path / "heat.png")
    preprocessing = describer.bundle.manifest.preprocessing
    descriptors = describer.describe(np.stack([read_image(path, preprocessing) for path in paths]))
    found = re.match(r"score (\d\.\d{3})\n", shown)
    assert found is not None
    assert float(found[1]) == pytest.approx(float(descriptors[0] @ descriptors[1]), abs=0.002)
    assert shown.endswith(f"wrote {tmp_path / 'heat.png'}\n")
    assert (tmp_path / "heat.png").read_bytes().startswith(b"\x89PNG")


def test_a_checkpoint_and_its_numbers(published: PublishedPlaces, checkpoint: Path, tmp_path: Path) -> None:
    recipe = small_recipe()
    a, b = (published.places.rows[row].path for row in (0, 1))
    shown = run(a, b, "--checkpoint", checkpoint, "--out", tmp_path / "heat.svg")
    torch.manual_seed(0)
    maps = heat_maps(small_encoder(recipe), *(read_image(path, recipe.image)[None] for path in (a, b)))
    shares = [100 * energy_share(side)[0] for side in (maps.activation_a, maps.match_a)]
    assert shown.splitlines()[:2] == [
        f"score {maps.scores[0]:.3f}",
        f"{a.name}: the top 10 % of locations hold {shares[0]:.1f} % of the activation, {shares[1]:.1f} % of the match",
    ]
    assert "<svg" in (tmp_path / "heat.svg").read_text()


def test_a_photo_alone(published: PublishedPlaces, checkpoint: Path, tmp_path: Path) -> None:
    photo = published.places.rows[0].path
    shown = run(photo, "--checkpoint", checkpoint, "--out", tmp_path / "heat.jpg")
    assert "score" not in shown
    assert shown.splitlines()[0].endswith("% of the own descriptor")
    assert len(shown.splitlines()) == 2


def test_users_errors(published: PublishedPlaces, checkpoint: Path, tmp_path: Path) -> None:
    photo, out = published.places.rows[0].path, tmp_path / "heat.png"
    with pytest.raises(ParameterError, match="both --checkpoint and --recipe are given"):
        run(photo, "--checkpoint", checkpoint, "--recipe", "simclr-resnet50", "--out", out)
    with pytest.raises(ImageError, match=r"none\.jpg: the photo cannot be read \(No such file or directory\)"):
        run(photo, tmp_path / "none.jpg", "--out", out)
    (tmp_path / "text.jpg").write_text("no photo")
    with pytest.raises(ImageError, match=r"text\.jpg: the image is of an unknown format"):
        run(tmp_path / "text.jpg", "--checkpoint", checkpoint, "--out", out)
    with pytest.raises(ArtefactError, match="nowhere"):
        run(photo, "--checkpoint", tmp_path / "nowhere", "--out", out)
    with pytest.raises(ParameterError, match=r"not a figure that can be drawn"):
        run(photo, "--checkpoint", checkpoint, "--out", tmp_path / "heat.txt")
    assert not out.exists()


def test_without_torch_the_remedy_is_named(
    published: PublishedPlaces, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingExtraError) as caught:
        run(published.places.rows[0].path, "--out", tmp_path / "heat.png")
    assert str(caught.value) == (
        "heat maps need PyTorch and timm, which are not installed. Run: pip install 'sightfix[training]'."
    )


def test_the_command_line_knows_it(checkpoint: Path, tmp_path: Path) -> None:
    done = sightfix("explain", "[red]none.jpg", "--checkpoint", str(checkpoint), folder=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error [red]none.jpg: the photo cannot be read (No such file or directory).")
