"""Each objective on the real west campus with EfficientNet-Lite0, on small images: it learns and does not collapse."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.campus import campus_references
from retrieval.references.reference import Reference
from training.checkpoint import ENCODER_NAME
from training.encoder import describe_cached
from training.objectives.registry import OBJECTIVES
from training.photos.cache import PhotoCache, fill_photo_cache
from training.recipe import load_recipe
from training.recipe_settings import Recipe
from training.run.training_run import TrainingRun
from training.run.validation import measure_collapse

pytestmark = pytest.mark.photos

SMALL = [
    "image.height=64",
    "image.width=64",
    "training.pairs=8",
    "training.queries_per_epoch=64",
    "optimiser.learning_rate=1e-4",
    "training.log_every_steps=1",
    "schedule.name=constant",
    "schedule.warm_up_epochs=0",
]
EPOCHS = 2
# A queue begins with random keys, which are easy: a short one is soon full of real ones. Then longer training.
OF_OBJECTIVE = {"mocov2": ["objective.queue_size=16", "objective.decay=0.9"]}
EPOCHS_OF = {"mocov2": 6}
QUEUE_FILLED = 2


def small_recipe(method: str, epochs: int) -> Recipe:
    name = f"{method.replace('_', '-')}-efficientnet-lite0"
    return load_recipe(name, [*SMALL, f"training.epochs={epochs}", *OF_OBJECTIVE.get(method, [])])


@pytest.fixture(scope="module")
def west(photos_root: Path, tmp_path_factory: pytest.TempPathFactory) -> PhotoCache:
    def east_m(reference: Reference) -> float:
        assert reference.position is not None
        return (reference.position.lon - 34.80) * 95160

    references = [reference for reference in campus_references(photos_root) if east_m(reference) < 227]
    assert len(references) == 662
    return fill_photo_cache(tmp_path_factory.mktemp("cache"), references, small_recipe("simclr", 1).image)


def losses(folder: Path) -> list[str]:
    with (folder / "steps.csv").open(newline="") as file:
        return [row["loss"] for row in csv.DictReader(file)]


@pytest.mark.parametrize(
    "method", [pytest.param(name, marks=[] if name == "simclr" else [pytest.mark.nightly]) for name in OBJECTIVES]
)
def test_an_objective_learns_on_the_campus_and_resumes_bit_for_bit(
    method: str, west: PhotoCache, tmp_path: Path
) -> None:
    epochs = EPOCHS_OF.get(method, EPOCHS)
    straight = TrainingRun(small_recipe(method, epochs), west, None, tmp_path / "straight", photos_name="west")
    straight.run()
    written = losses(tmp_path / "straight")
    numbers = np.array([float(loss) for loss in written[QUEUE_FILLED:]])
    third = len(numbers) // 3
    assert numbers[-third:].mean() < numbers[:third].mean()

    rows = np.arange(0, len(west), 4)
    report = measure_collapse(torch.from_numpy(describe_cached(straight.encoder, west, rows)))
    assert report.warning is None, report

    TrainingRun(small_recipe(method, 1), west, None, tmp_path / "resumed", photos_name="west").run()
    TrainingRun(small_recipe(method, epochs), west, None, tmp_path / "resumed", photos_name="west").run()
    assert losses(tmp_path / "resumed") == written
    nets = [(tmp_path / name / "last" / ENCODER_NAME).read_bytes() for name in ("straight", "resumed")]
    assert nets[0] == nets[1]
