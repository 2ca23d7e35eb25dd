"""The fourteen recipes of the paper: one step of the real loop, and the encoder that remains.

Two of them at their own size, all of them on small images and with narrow heads; `make test-nightly` runs all at their
own size.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from export.exporting import write_export
from export.from_pytorch import checkpoint_model
from retrieval.describer import Describer
from retrieval.references.reference import Reference
from tests.training.walks import make_walks
from training.checkpoint import ENCODER_NAME, load_encoder
from training.encoder import describe_cached
from training.objectives.registry import OBJECTIVES
from training.photos.cache import PhotoCache, fill_photo_cache
from training.recipe import load_recipe
from training.run.training_run import TrainingRun

# One query and, where negatives are mined, one: the smallest batch that batch norms can take.
ONE_STEP = ["network.pretrained=none", "training.pairs=2", "training.epochs=1"]

# Both are multiples of DeiT's patches; heads and queue of the paper would take a gigabyte a checkpoint.
SMALL_IMAGES = ["image.height=96", "image.width=128"]
NARROW = {
    "mocov2": ["objective.queue_size=64"],
    "byol": ["objective.head_width=64", "objective.predictor_width=64"],
    "simsiam": ["objective.head_width=64", "objective.predictor_width=64"],
    "barlow_twins": ["objective.head_width=64"],
    "vicreg": ["objective.head_width=64"],
}
BACKBONES = ("resnet50", "deit-small")


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory) -> list[Reference]:
    return make_walks(tmp_path_factory.mktemp("walks"), 5)


def cases() -> Iterator[object]:
    for backbone in BACKBONES:
        for method in OBJECTIVES:
            yield pytest.param(
                method, backbone, (480, 640), id=f"{method}-{backbone}-480x640", marks=[pytest.mark.nightly]
            )
            yield pytest.param(method, backbone, (96, 128), id=f"{method}-{backbone}-96x128")


@pytest.mark.parametrize(("method", "backbone", "size"), list(cases()))
def test_a_recipe_of_the_paper_trains(
    method: str, backbone: str, size: tuple[int, int], tmp_path: Path, references: list[Reference]
) -> None:
    name = f"{method.replace('_', '-')}-{backbone}"
    mines = load_recipe(name).geopair.negative_mining != "none"
    small = [*SMALL_IMAGES, *NARROW.get(method, [])] if size == (96, 128) else []
    # Random nets tell random pictures apart by more than the paper's margin, and nothing would be learnt.
    margin = ["objective.margin=4.0"] if method == "triplet" else []
    recipe = load_recipe(name, [*ONE_STEP, *small, *margin, f"training.queries_per_epoch={1 if mines else 2}"])
    assert (recipe.image.height, recipe.image.width) == size
    cache: PhotoCache = fill_photo_cache(tmp_path / "cache", references, recipe.image)
    run = TrainingRun(recipe, cache, None, tmp_path / "run", photos_name="walks")
    before = {name: tensor.clone() for name, tensor in run.encoder.net.named_parameters()}
    result = run.run()
    assert result.progress.step == 1
    moved = [name for name, tensor in run.encoder.net.named_parameters() if not torch.equal(tensor, before[name])]
    # timm begins ResNet's residual branches at zero: in the first step only their last norm has a gradient.
    assert len(moved) > (0.3 if backbone == "resnet50" else 0.9) * len(before)

    kept = load_file(result.last / ENCODER_NAME)
    assert set(kept) == set(run.encoder.net.state_dict())
    heads = set(run.model.state_dict()) - {f"net.{name}" for name in kept}
    assert not any(name.removeprefix("net.") in kept for name in heads)
    encoder = load_encoder(result.last)
    assert encoder.descriptor_dim == (1024 if backbone == "resnet50" else 256)
    rows = np.arange(2)
    np.testing.assert_allclose(
        describe_cached(encoder, cache, rows), describe_cached(run.encoder, cache, rows), atol=1e-5
    )
    # The network does not depend on the method (test_recipes_of_the_paper), and exporting it takes a while: each once.
    # tests/export/test_backbones.py exports both in every run.
    if (method, backbone, size) in (("simclr", "resnet50", (480, 640)), ("simclr", "deit-small", (96, 128))):
        exported = Describer(write_export(checkpoint_model(result.last), tmp_path / "bundle")).describe(
            cache.rows(rows)
        )
        assert (exported * describe_cached(encoder, cache, rows)).sum(axis=1).min() > 0.99999
