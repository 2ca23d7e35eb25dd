"""The vocabularies that VLAD begins with, and every objective on it."""

from pathlib import Path

import numpy as np
import pytest
import torch

from retrieval.errors import ParameterError
from retrieval.references.reference import Reference
from tests.training.small_encoder import SMALL_NETWORK, small_recipe
from tests.training.walks import make_walks
from training.checkpoint import ENCODER_NAME, load_encoder
from training.encoder import build_encoder
from training.objectives.registry import OBJECTIVES
from training.photos.cache import PhotoCache, fill_photo_cache
from training.recipe import load_recipe
from training.run.training_run import TrainingRun
from training.run.vocabulary import learn_vocabulary

VLAD = ["network.aggregation=vlad", "network.layers=layer2,layer3", "network.centroids=4"]
NARROW = {
    "simclr": [],
    "mocov2": ["objective.queue_size=16"],
    "triplet": ["objective.margin=4.0", "geopair.negative_sample=8", "training.pairs=3"],
    "byol": ["objective.head_width=32", "objective.predictor_width=32"],
    "simsiam": ["objective.head_width=32", "objective.predictor_width=32"],
    "barlow_twins": ["objective.head_width=32"],
    "vicreg": ["objective.head_width=32"],
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> PhotoCache:
    references: list[Reference] = make_walks(tmp_path_factory.mktemp("walks"), 12)
    return fill_photo_cache(tmp_path_factory.mktemp("cache"), references, small_recipe().image)


def local_descriptors(photos: PhotoCache, overrides: list[str]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """All local descriptors of the two layers, (n, C) unit rows, and the centroids that are learnt from them."""
    torch.manual_seed(0)
    recipe = small_recipe(*overrides)
    encoder = build_encoder(recipe.network, recipe.image)
    state = torch.random.get_rng_state()
    learn_vocabulary(encoder, photos, 0)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert encoder.net.training
    images = torch.from_numpy(photos.rows(np.arange(len(photos)))).permute(0, 3, 1, 2)
    with torch.no_grad():
        maps = encoder.net.eval().local_descriptors(encoder.normalisation.apply(images))
    cells = [spatial.flatten(2).transpose(1, 2).reshape(-1, spatial.shape[1]).numpy() for spatial in maps]
    units = []
    for rows, part in zip(cells, encoder.net.pool.parts, strict=True):
        mean, deviation = rows.mean(axis=0), rows.std(axis=0)
        deviation = np.maximum(deviation, 1e-3 * deviation.max())  # some channels are dead
        np.testing.assert_allclose(part.mean.numpy(), mean, atol=1e-4)
        np.testing.assert_allclose(part.deviation.numpy(), deviation, rtol=1e-3)
        standard = (rows - mean) / deviation
        units.append(standard / np.linalg.norm(standard, axis=1, keepdims=True))
    return units, [part.centroids.detach().numpy() for part in encoder.net.pool.parts]


def nearest(units: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    return ((units[:, None] - centroids[None]) ** 2).sum(axis=2)


def test_centroids_are_means_of_the_local_descriptors_nearest_to_them(photos: PhotoCache) -> None:
    for units, centroids in zip(*local_descriptors(photos, VLAD), strict=True):
        distances = nearest(units, centroids)
        chosen = distances.argmin(axis=1)
        for place in range(4):
            np.testing.assert_allclose(units[chosen == place].mean(axis=0), centroids[place], atol=0.02)
        # Better than as many local descriptors by chance.
        by_chance = nearest(units, units[np.random.default_rng(0).permutation(len(units))[:4]])
        assert distances.min(axis=1).mean() < by_chance.min(axis=1).mean()


def test_the_same_seed_gives_the_same_centroids(photos: PhotoCache) -> None:
    first, again = local_descriptors(photos, VLAD)[1], local_descriptors(photos, VLAD)[1]
    assert all(np.array_equal(one, other) for one, other in zip(first, again, strict=True))


def test_more_centroids_than_local_descriptors_are_refused(photos: PhotoCache) -> None:
    with pytest.raises(ParameterError, match=r"local descriptors of layer2 are too few for 99999 centroids"):
        local_descriptors(photos, [*VLAD, "network.centroids=99999"])


@pytest.mark.parametrize("method", list(OBJECTIVES))
def test_every_objective_trains_on_it(method: str, photos: PhotoCache, tmp_path: Path) -> None:
    name = f"{method.replace('_', '-')}-efficientnet-lite0"
    small = ["training.pairs=8", "training.epochs=1", "training.queries_per_epoch=16", "training.log_every_steps=1"]
    recipe = load_recipe(name, [*SMALL_NETWORK, *small, *VLAD, *NARROW[method], "schedule.warm_up_epochs=0"])
    run = TrainingRun(recipe, photos, None, tmp_path / "run", photos_name="walks")
    before = {name: tensor.clone() for name, tensor in run.encoder.net.named_parameters()}
    target = run.model.target
    if target is not None:  # the momentum encoder begins with the vocabulary too
        theirs = dict(target.encoder.named_parameters())
        assert all(torch.equal(theirs[name], value) for name, value in before.items())
    result = run.run()
    assert result.progress.step >= 2
    after = dict(run.encoder.net.named_parameters())
    for part in ("pool.parts.0.centroids", "pool.parts.1.centroids", "backbone.conv1.0.weight"):
        assert not torch.equal(after[part], before[part])
    kept = load_encoder(result.last)
    assert all(torch.equal(tensor, after[name]) for name, tensor in kept.net.named_parameters())


def test_a_run_that_goes_on_keeps_its_vocabulary(
    photos: PhotoCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = small_recipe(*VLAD, "training.pairs=8", "training.epochs=1")
    saved = TrainingRun(recipe, photos, None, tmp_path / "run", photos_name="walks").run().last / ENCODER_NAME
    written = saved.read_bytes()
    calls: list[object] = []
    monkeypatch.setattr("training.run.training_run.learn_vocabulary", lambda *_, **__: calls.append(1))
    again = TrainingRun(recipe, photos, None, tmp_path / "run", photos_name="walks")
    trained = load_encoder(saved.parent).net.state_dict()
    assert all(torch.equal(value, trained[name]) for name, value in again.encoder.net.state_dict().items())
    assert not calls
    assert saved.read_bytes() == written
    TrainingRun(recipe, photos, None, tmp_path / "other", photos_name="walks")
    assert calls
