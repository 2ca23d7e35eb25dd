"""A whole run on made-up places: it learns, logs, validates, stops, goes on bit for bit, and survives a full disk."""

import csv
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from retrieval.errors import SightfixError, StorageError
from retrieval.references.reference import Reference
from tests.training.small_encoder import SMALL_NETWORK
from tests.training.walks import make_walks
from training import checkpoint as checkpoints
from training.checkpoint import ENCODER_NAME, load_encoder, open_checkpoint
from training.photos.hold_out import split_by_session
from training.recipe import load_recipe
from training.recipe_settings import Recipe
from training.run.observing import EpochSummary, RunObserver
from training.run.train import TrainingPhotos, TrainSettings, train
from training.run.training_run import RunResult, TrainingError, TrainingStoppedError

QUICK = ["training.pairs=8", "training.epochs=2", "training.log_every_steps=1"]
HEADS = {
    "simclr": ["objective.head_width=32"],
    "byol": ["objective.head_layers=1", "objective.head_width=32", "objective.predictor_width=32"],
    "mocov2": ["objective.head_width=32", "objective.queue_size=16"],
}


class Watching(RunObserver):
    """Collects what the run reports, and may send a signal after some batches."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.epochs: list[EpochSummary] = []
        self.notes: list[str] = []
        self.batches = 0
        self._stop_after = stop_after

    @contextmanager
    def work(self, what: str, total: int, unit: str = "photos") -> Iterator[Callable[[int], None]]:
        done = 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            if what.startswith("Epoch"):
                self.batches += 1
                if self.batches == self._stop_after:
                    signal.raise_signal(signal.SIGTERM)

        yield advance
        if self._stop_after is None:
            assert done == total, what

    def note(self, text: str) -> None:
        self.notes.append(text)

    def epoch_ended(self, summary: EpochSummary) -> None:
        self.epochs.append(summary)


@pytest.fixture(scope="module")
def walks(tmp_path_factory: pytest.TempPathFactory) -> list[Reference]:
    return make_walks(tmp_path_factory.mktemp("walks"), 24)


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> list[Reference]:
    return make_walks(tmp_path_factory.mktemp("others"), 10, first_seed=1000)


def quick(*overrides: str, method: str = "simclr") -> Recipe:
    name = f"{method}-efficientnet-lite0"
    return load_recipe(name, [*SMALL_NETWORK, *QUICK, *HEADS.get(method, []), *overrides])


def trained(
    folder: Path,
    references: list[Reference],
    recipe: Recipe,
    *,
    validation: list[Reference] | None = None,
    observer: RunObserver | None = None,
    restart: bool = False,
) -> RunResult:
    photos = TrainingPhotos("walks", references, split_by_session(validation) if validation else None)
    settings = TrainSettings(cache=folder.parent / "cache", restart=restart)
    return train(recipe, photos, folder, settings, observer)


def losses(folder: Path) -> list[str]:
    """The losses as they were written, text for text."""
    with (folder / "steps.csv").open(newline="") as file:
        return [row["loss"] for row in csv.DictReader(file)]


def test_a_run_learns_validates_and_writes_what_it_says(
    tmp_path: Path, walks: list[Reference], others: list[Reference]
) -> None:
    seen = Watching()
    recipe = quick("training.epochs=4", "optimiser.learning_rate=1e-3")
    result = trained(tmp_path / "run", walks, recipe, validation=others, observer=seen)
    assert [summary.epoch for summary in seen.epochs] == [0, 1, 2, 3, 4]
    assert seen.epochs[0].loss is None
    assert seen.epochs[4].loss < seen.epochs[1].loss
    assert set(seen.epochs[2].recalls) == {"R@1", "R@5", "R@10"}
    assert seen.epochs[1].chance == pytest.approx(0.1)
    assert all(summary.photos_per_second > 0 for summary in seen.epochs[1:])
    best = max(seen.epochs[1:], key=lambda summary: summary.recalls["R@1"])
    assert result.progress.best_recall == best.recalls["R@1"]
    assert result.best == tmp_path / "run" / "best"
    stated = open_checkpoint(result.best).manifest
    assert stated.epoch == result.progress.best_epoch
    assert stated.provenance.objective == "simclr"
    assert stated.provenance.training_data == "walks, 48 photos"
    assert stated.provenance.recalls["validation R@1 25 m"] == pytest.approx(best.recalls["R@1"])
    assert load_encoder(result.last).descriptor_dim == 16
    with (tmp_path / "run" / "epochs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["0", "1", "2", "3", "4"]
    assert float(rows[4]["recall_at_1"]) == pytest.approx(seen.epochs[4].recalls["R@1"])
    assert len(losses(tmp_path / "run")) == result.progress.step == 4 * 6


def test_the_same_seed_gives_the_same_net_and_another_seed_another(tmp_path: Path, walks: list[Reference]) -> None:
    nets = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        result = trained(tmp_path / name, walks, quick("training.epochs=1", f"training.seed={seed}"))
        nets.append((result.last / ENCODER_NAME).read_bytes())
    assert nets[0] == nets[1] != nets[2]


MINED = ["geopair.negative_mining=partial", "geopair.positive=nearest", "geopair.negative_sample=20"]
RESUMED = {
    "simclr": ("simclr", []),
    "mined": ("simclr", MINED),
    "triplet": ("triplet", ["geopair.negative_sample=20"]),
    "byol": ("byol", []),
    "mocov2": ("mocov2", []),
    "vlad": ("byol", ["network.aggregation=vlad", "network.layers=layer2,layer3", "network.centroids=4"]),
    "accumulated": ("simclr", ["training.accumulation=2", "training.clip_norm=1.0", "schedule.warm_up_epochs=1"]),
}


def stopped_runs() -> Iterator[object]:
    """Every kind stopped in the middle of an epoch, and one of them everywhere; the others everywhere every night."""
    for kind in RESUMED:
        for stop_after in (2, 6, 9):
            often = stop_after == 2 or kind == "simclr"
            yield pytest.param(kind, stop_after, marks=[] if often else [pytest.mark.nightly])


@pytest.mark.parametrize(("kind", "stop_after"), list(stopped_runs()))
def test_a_stopped_run_goes_on_bit_for_bit(tmp_path: Path, walks: list[Reference], kind: str, stop_after: int) -> None:
    method, overrides = RESUMED[kind]
    recipe = quick(*overrides, method=method)
    straight = trained(tmp_path / "straight", walks, recipe)
    with pytest.raises(TrainingStoppedError, match=r"stopped by SIGTERM after epoch \d.* the run is saved"):
        trained(tmp_path / "stopped", walks, recipe, observer=Watching(stop_after))
    written = losses(tmp_path / "stopped")
    assert 0 < len(written) < straight.progress.step
    seen = Watching()
    resumed = trained(tmp_path / "stopped", walks, recipe, observer=seen)
    assert any(note.startswith("going on after epoch") for note in seen.notes)
    assert losses(tmp_path / "stopped") == losses(tmp_path / "straight")
    assert (resumed.last / ENCODER_NAME).read_bytes() == (straight.last / ENCODER_NAME).read_bytes()
    assert resumed.progress == straight.progress


def test_a_finished_run_is_not_trained_again_and_more_epochs_go_on(tmp_path: Path, walks: list[Reference]) -> None:
    trained(tmp_path / "run", walks, quick("training.epochs=1"))
    seen = Watching()
    trained(tmp_path / "run", walks, quick("training.epochs=1"), observer=seen)
    assert seen.batches == 0
    assert seen.notes[-1] == "the run is finished"
    trained(tmp_path / "run", walks, quick("training.epochs=2"), observer=seen)
    assert seen.batches == 6


def test_patience_ends_a_run_that_gets_no_better(
    tmp_path: Path, walks: list[Reference], others: list[Reference]
) -> None:
    recipe = quick("training.epochs=9", "validation.patience=2", "optimiser.learning_rate=1e-12")
    result = trained(tmp_path / "run", walks, recipe, validation=others)
    assert result.progress.finished
    assert result.progress.epoch < 9
    assert result.progress.epoch - result.progress.best_epoch == 2


def test_another_recipe_or_other_photos_are_refused(
    tmp_path: Path, walks: list[Reference], others: list[Reference]
) -> None:
    trained(tmp_path / "run", walks, quick("training.epochs=1"))
    before = (tmp_path / "run" / "last" / ENCODER_NAME).read_bytes()
    with pytest.raises(SightfixError, match=r"differs in optimiser.learning_rate, training.pairs. .*--restart"):
        trained(tmp_path / "run", walks, quick("training.pairs=6", "optimiser.learning_rate=1e-3"))
    with pytest.raises(SightfixError, match=r"differs in the photos. .*--restart"):
        trained(tmp_path / "run", others, quick("training.epochs=2"))
    assert (tmp_path / "run" / "last" / ENCODER_NAME).read_bytes() == before
    result = trained(tmp_path / "run", others, quick("training.epochs=1"), restart=True)
    assert result.progress.epoch == 1
    assert len(losses(tmp_path / "run")) == result.progress.step


def test_a_full_disk_leaves_the_previous_checkpoint(
    tmp_path: Path, walks: list[Reference], monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    recipe = quick("training.epochs=2")
    written = 0
    real = checkpoints.write_flushed

    def fills_up(path: Path, data: bytes) -> None:
        nonlocal written
        if path.name == ENCODER_NAME:
            written += 1
            if written == 2:
                raise OSError(errno.ENOSPC, "No space left on device")
        real(path, data)

    with monkeypatch.context() as patched:
        patched.setattr(checkpoints, "write_flushed", fills_up)
        with pytest.raises(StorageError, match="No space left on device"):
            trained(tmp_path / "run", walks, recipe)
    assert open_checkpoint(tmp_path / "run" / "last").manifest.epoch == 1
    straight = trained(tmp_path / "straight", walks, recipe)
    resumed = trained(tmp_path / "run", walks, recipe)
    assert losses(tmp_path / "run") == losses(tmp_path / "straight")
    assert (resumed.last / ENCODER_NAME).read_bytes() == (straight.last / ENCODER_NAME).read_bytes()


def test_a_run_that_diverges_says_so_and_keeps_the_last_checkpoint(tmp_path: Path, walks: list[Reference]) -> None:
    recipe = quick("training.epochs=9", "optimiser.learning_rate=1e30")
    with pytest.raises(TrainingError, match=r"training has diverged. Lower optimiser.learning_rate"):
        trained(tmp_path / "run", walks, recipe)


def test_half_precision_trains(tmp_path: Path, walks: list[Reference]) -> None:
    result = trained(tmp_path / "run", walks, quick("training.epochs=1", "training.precision=bf16"))
    assert result.progress.step == 6
    with pytest.raises(SightfixError, match=r"training\.precision: fp16 needs a GPU"):
        trained(tmp_path / "other", walks, quick("training.precision=fp16"))


def test_a_collapse_is_reported(tmp_path: Path, walks: list[Reference]) -> None:
    seen = Watching()
    # VICReg without its variance and covariance asks for nothing but equal descriptors.
    without = ["objective.variance_weight=0", "objective.covariance_weight=0", "optimiser.learning_rate=1e-2"]
    recipe = quick("training.epochs=4", "objective.head_layers=0", *without, method="vicreg")
    trained(tmp_path / "run", walks, recipe, observer=seen)
    warnings = [summary.warning for summary in seen.epochs if summary.warning]
    assert warnings
    assert all("descriptors collapse" in warning for warning in warnings)
