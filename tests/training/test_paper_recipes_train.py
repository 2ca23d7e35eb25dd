"""The fourteen recipes of the paper at their own size: one step of the real loop, and the encoder that remains."""

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


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory) -> list[Reference]:
    return make_walks(tmp_path_factory.mktemp("walks"), 5)


@pytest.mark.parametrize("backbone", ["resnet50", "deit-small"])
@pytest.mark.parametrize("method", list(OBJECTIVES))
def test_a_recipe_of_the_paper_trains(method: str, backbone: str, tmp_path: Path, references: list[Reference]) -> None:
    name = f"{method.replace('_', '-')}-{backbone}"
    mines = load_recipe(name).geopair.negative_mining != "none"
    # Random nets tell random pictures apart by more than the paper's margin, and nothing would be learnt.
    margin = ["objective.margin=4.0"] if method == "triplet" else []
    recipe = load_recipe(name, [*ONE_STEP, *margin, f"training.queries_per_epoch={1 if mines else 2}"])
    assert (recipe.image.height, recipe.image.width) == (480, 640)
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
    # The network does not depend on the method (test_recipes_of_the_paper), and exporting it takes a while.
    if method == "simclr":
        exported = Describer(write_export(checkpoint_model(result.last), tmp_path / "bundle")).describe(
            cache.rows(rows)
        )
        assert (exported * describe_cached(encoder, cache, rows)).sum(axis=1).min() > 0.99999
