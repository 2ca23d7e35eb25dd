"""A comparison with a stand-in for training: what is evaluated, what is done only once, and what is refused."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from retrieval.errors import ParameterError, SightfixError
from retrieval.evaluation.eval_set import EvalSet
from retrieval.references.reference import Reference
from tests.training.small_encoder import small_encoder, small_recipe
from tests.training.walks import make_walks
from training.checkpoint import CheckpointError, save_encoder
from training.comparison.compare import compare
from training.comparison.definition import Comparison, ComparisonError
from training.comparison.evaluation import network_hash
from training.comparison.report import ComparisonReport
from training.recipe import load_recipe
from training.recipe_settings import Recipe
from training.run.observing import ComparisonObserver, RunObserver
from training.run.state import OtherRunError, Progress
from training.run.train import TrainingPhotos, TrainSettings
from training.run.training_run import RunResult, TrainingError, TrainingStoppedError

PLACES = 6


class Trainer:
    """Stands in for training: saves a net that depends on the seed; may stop, or diverge, in its n-th run."""

    def __init__(self, *, raises: dict[int, Exception] | None = None, broken: bool = False) -> None:
        self.runs: list[str] = []
        self._raises = raises or {}
        self._broken = broken

    def __call__(
        self, recipe: Recipe, photos: TrainingPhotos, folder: Path, settings: TrainSettings, observer: RunObserver
    ) -> RunResult:
        self.runs.append(f"{recipe.name} {recipe.training.seed}")
        if len(self.runs) in self._raises:
            raise self._raises[len(self.runs)]
        torch.manual_seed(recipe.training.seed + 1)
        encoder = small_encoder(recipe)
        if self._broken:
            for weight in encoder.net.parameters():
                weight.data.fill_(np.nan)
        encoder = encoder.trained(recipe.objective.name, photos.name, {})
        save_encoder(folder / "best", encoder, recipe, epoch=2)
        return RunResult(folder / "best", folder / "last", Progress("photos", 1, epoch=3))


class Watching(ComparisonObserver):
    """Collects what the comparison reports."""

    def __init__(self) -> None:
        self.headlines: list[str] = []
        self.warnings: list[str] = []
        self.described = 0
        self.reports: list[ComparisonReport] = []

    @contextmanager
    def work(self, what: str, total: int, unit: str = "photos") -> Iterator[Callable[[int], None]]:
        if what.startswith("Describing"):
            self.described += 1
        done = []
        yield done.append
        assert sum(done) == total, what

    def run_begins(self, number: int, total: int, label: str, seed: int, *, done: bool) -> None:
        self.headlines.append(f"{number} of {total}: {label}, seed {seed}{' done' if done else ''}")

    def warning(self, text: str) -> None:
        self.warnings.append(text)

    def reported(self, report: ComparisonReport) -> None:
        self.reports.append(report)


@pytest.fixture(scope="module")
def walks(tmp_path_factory: pytest.TempPathFactory) -> list[Reference]:
    return make_walks(tmp_path_factory.mktemp("walks"), PLACES)


@pytest.fixture(scope="module")
def far_walks(tmp_path_factory: pytest.TempPathFactory) -> list[Reference]:
    """Other places, far away from the first."""
    moved = []
    for reference in make_walks(tmp_path_factory.mktemp("far"), PLACES, first_seed=500):
        assert reference.position is not None
        moved.append(replace(reference, position=replace(reference.position, lon=reference.position.lon + 1)))
    return moved


def named(name: str, *overrides: str) -> Recipe:
    return small_recipe(*overrides).model_copy(update={"name": name})


def set_of(references: list[Reference], name: str = "walks") -> EvalSet:
    return EvalSet(name, tuple(references[:PLACES]), tuple(references[PLACES:]))


def plan_of(walks: list[Reference], far_walks: list[Reference], **changes: object) -> Comparison:
    comparison = Comparison(
        recipes=(named("one"), named("two")),
        photos=TrainingPhotos("far", far_walks),
        eval_sets=(set_of(walks),),
        seeds=2,
        baseline="one",
    )
    return replace(comparison, **changes)  # type: ignore[arg-type]


def run(
    comparison: Comparison, folder: Path, trainer: Trainer | None = None
) -> tuple[ComparisonReport, Trainer, Watching]:
    trainer, watching = trainer or Trainer(), Watching()
    report = compare(comparison, folder / "out", TrainSettings(cache=folder / "cache"), watching, trainer)
    return report, trainer, watching


@pytest.fixture
def comparison(walks: list[Reference], far_walks: list[Reference]) -> Comparison:
    return plan_of(walks, far_walks)


@pytest.fixture
def small_comparison(comparison: Comparison) -> Comparison:
    """One run, and so two checkpoints: the untrained net and that of the run."""
    return replace(comparison, recipes=(named("one"),), seeds=1)


def test_all_rows_are_there(comparison: Comparison, tmp_path: Path) -> None:
    report, trainer, watching = run(comparison, tmp_path)
    assert trainer.runs == ["one 0", "two 0", "one 1", "two 1"]
    assert watching.headlines[2] == "3 of 4: one, seed 1"
    assert [(row.row.label, row.row.method, row.seeds) for row in report.rows] == [
        ("untrained", "untrained", (0,)),
        ("one", "simclr", (0, 1)),
        ("two", "simclr", (0, 1)),
    ]
    assert report.rows[1].row.size == "16-D, 64×96"
    assert report.columns[0].chance == pytest.approx(1 / PLACES)
    assert [difference.row.label for difference in report.differences] == ["untrained", "untrained", "two", "two"]
    heat = report.rows[1].heat["walks"].activation
    assert heat is not None
    assert 0.1 <= heat.low <= heat.value <= heat.high <= 1.0
    assert (report.missing, watching.warnings) == ((), [])
    assert "| SimCLR (one) | test_resnet.r160_in1k, 16-D, 64×96 | 2 | 2 of 3 |" in (
        tmp_path / "out" / "table.md"
    ).read_text("utf-8")
    assert len((tmp_path / "out" / "table.csv").read_text("utf-8").splitlines()) == 1 + 3 * 2 * 3


def test_the_table_can_be_looked_at_midway(comparison: Comparison, tmp_path: Path) -> None:
    _, _, watching = run(comparison, tmp_path)
    assert [report.missing for report in watching.reports] == [
        ("one, seeds 0, 1", "two, seeds 0, 1"),
        ("one, seed 1", "two, seeds 0, 1"),
        ("one, seed 1", "two, seed 1"),
        ("two, seed 1",),
        (),
    ]


def test_what_was_done_before_is_in_every_table(comparison: Comparison, tmp_path: Path) -> None:
    """A recipe is added whose seed 0 comes before the seed 1 of the other, which is there already."""
    run(replace(comparison, recipes=comparison.recipes[:1]), tmp_path)
    report, trainer, watching = run(comparison, tmp_path)
    assert trainer.runs == ["two 0", "two 1"]
    assert watching.reports[0].missing == ("two, seeds 0, 1",)
    assert watching.headlines == [
        "1 of 4: one, seed 0 done",
        "3 of 4: one, seed 1 done",
        "2 of 4: two, seed 0",
        "4 of 4: two, seed 1",
    ]
    assert report.rows[1].seeds == (0, 1)


def test_seeds_stay_in_order(comparison: Comparison, tmp_path: Path) -> None:
    """The record of seed 0 is lost: it is evaluated after seed 1."""
    comparison = replace(comparison, recipes=comparison.recipes[:1])
    first, _, _ = run(comparison, tmp_path)
    (tmp_path / "out" / "evaluations" / "one" / "seed-0" / "walks.json").unlink()
    second, _, _ = run(comparison, tmp_path)
    assert second == first


def test_a_second_call_does_nothing_and_finds_the_same(comparison: Comparison, tmp_path: Path) -> None:
    first, _, _ = run(comparison, tmp_path)
    second, trainer, watching = run(comparison, tmp_path)
    assert (trainer.runs, watching.described) == ([], 0)
    assert watching.headlines[0] == "1 of 4: one, seed 0 done"
    assert len(watching.reports) == 1
    assert second == first


def test_a_stopped_comparison_goes_on(comparison: Comparison, tmp_path: Path) -> None:
    stopped = TrainingStoppedError("stopped", where="x", remedy="y", signal_number=15)
    with pytest.raises(TrainingStoppedError):
        run(comparison, tmp_path, Trainer(raises={3: stopped}))
    report, trainer, watching = run(comparison, tmp_path)
    assert trainer.runs == ["one 1", "two 1"]
    assert watching.described == 2
    whole, _, _ = run(comparison, tmp_path / "at once")
    assert report == whole


def test_a_kill_between_training_and_evaluation(
    comparison: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("training.comparison.compare.evaluate_encoder", killed)
        # The untrained net is the first that is evaluated.
        with pytest.raises(KeyboardInterrupt):
            run(comparison, tmp_path)
    run(replace(comparison, seeds=1), tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("training.comparison.compare.evaluate_encoder", killed)
        with pytest.raises(KeyboardInterrupt):
            run(comparison, tmp_path)
    _, trainer, watching = run(comparison, tmp_path)
    assert trainer.runs == ["two 1"]
    assert watching.described == 2


def test_one_more_seed_trains_that_alone(small_comparison: Comparison, tmp_path: Path) -> None:
    run(small_comparison, tmp_path)
    _, trainer, _ = run(replace(small_comparison, seeds=2), tmp_path)
    assert trainer.runs == ["one 1"]


def test_a_changed_evaluation_set_is_evaluated_anew(small_comparison: Comparison, tmp_path: Path) -> None:
    """One query is left out: nothing is trained, both checkpoints are evaluated on that set alone."""
    more = (*small_comparison.eval_sets, replace(small_comparison.eval_sets[0], name="more"))
    run(replace(small_comparison, eval_sets=more), tmp_path)
    changed = replace(more[1], queries=more[1].queries[1:])
    report, trainer, watching = run(replace(small_comparison, eval_sets=(more[0], changed)), tmp_path)
    assert (trainer.runs, watching.described) == ([], 2)
    assert [column.queries for column in report.columns if column.n == 1] == [6, 6, 5, 5]


def test_a_changed_checkpoint_is_evaluated_anew(comparison: Comparison, tmp_path: Path) -> None:
    """A row of an existing checkpoint, whose weights then change."""
    recipe, folder = named("mine"), tmp_path / "mine"
    save_encoder(folder, small_encoder(recipe).trained("simclr", "x", {}), recipe, epoch=7)
    comparison = replace(comparison, recipes=(), photos=None, checkpoints={"mine": folder}, baseline="untrained")
    report, _, watching = run(comparison, tmp_path)
    assert watching.described == 2
    assert [(row.row.label, row.row.method) for row in report.rows] == [("untrained", "untrained"), ("mine", "simclr")]
    assert report.rows[1].epochs[0].evaluated == 7
    save_encoder(folder, small_encoder(recipe).trained("simclr", "x", {}), recipe, epoch=8)
    _, _, watching = run(comparison, tmp_path)
    assert watching.described == 1


def test_other_radii_are_evaluated_anew(small_comparison: Comparison, tmp_path: Path) -> None:
    run(small_comparison, tmp_path)
    report, trainer, watching = run(replace(small_comparison, radii_m=(80.0,)), tmp_path)
    assert (trainer.runs, watching.described) == ([], 2)
    assert {column.radius_m for column in report.columns} == {80.0}


def test_other_training_photos_are_trained_on(
    small_comparison: Comparison, far_walks: list[Reference], tmp_path: Path
) -> None:
    run(small_comparison, tmp_path)
    _, trainer, _ = run(replace(small_comparison, photos=TrainingPhotos("far", far_walks[1:])), tmp_path)
    assert len(trainer.runs) == 1


def test_a_damaged_record_is_made_again(small_comparison: Comparison, tmp_path: Path) -> None:
    run(small_comparison, tmp_path)
    path = tmp_path / "out" / "evaluations" / "one" / "seed-0" / "walks.json"
    path.write_text(path.read_text()[:-20])
    _, trainer, watching = run(small_comparison, tmp_path)
    assert (trainer.runs, watching.described) == ([], 1)


def test_each_network_has_an_untrained_row(comparison: Comparison, tmp_path: Path) -> None:
    recipes = (named("one"), named("two"), named("wide", "network.descriptor_dim=32"))
    report, _, _ = run(replace(comparison, recipes=recipes, seeds=1), tmp_path)
    untrained = [row.row.size for row in report.rows if row.row.method == "untrained"]
    assert untrained == ["16-D, 64×96", "32-D, 64×96"]


def test_a_run_that_diverges_does_not_end_the_others(comparison: Comparison, tmp_path: Path) -> None:
    error = TrainingError("the loss is nan", code="diverged")
    report, trainer, watching = run(comparison, tmp_path, Trainer(raises={2: error}))
    assert len(trainer.runs) == 4
    assert report.missing == ("two, seed 0 (diverged)",)
    assert report.rows[2].seeds == (1,)
    assert any("the loss is nan" in warning for warning in watching.warnings)


def test_a_net_that_broke_has_no_numbers(comparison: Comparison, tmp_path: Path) -> None:
    report, _, watching = run(replace(comparison, seeds=1), tmp_path, Trainer(broken=True))
    assert report.missing == ("one, seed 0 (diverged)", "two, seed 0 (diverged)")
    assert any("descriptors are not finite" in warning for warning in watching.warnings)
    assert [row.row.label for row in report.rows] == ["untrained"]


def test_training_near_the_queries_is_warned_of(
    small_comparison: Comparison, walks: list[Reference], tmp_path: Path
) -> None:
    report, _, watching = run(replace(small_comparison, photos=TrainingPhotos("same", walks)), tmp_path)
    warning = "12 of 12 training photos lie within 25 m of a query of walks: its numbers are optimistic"
    assert watching.warnings == [warning]
    assert f"- {warning}." in (tmp_path / "out" / "table.md").read_text("utf-8")
    assert report.notes[0] == warning


def test_recalls_are_those_of_the_evaluation(
    small_comparison: Comparison, walks: list[Reference], tmp_path: Path
) -> None:
    """The same checkpoint through `Validation`, which evaluates with `retrieval.evaluation.evaluate`."""
    from training.checkpoint import load_encoder
    from training.photos.cache import fill_photo_cache
    from training.run.validation import Validation

    report, _, _ = run(small_comparison, tmp_path)
    encoder = load_encoder(tmp_path / "out" / "runs" / "one" / "seed-0" / "best")
    database, queries = (
        fill_photo_cache(tmp_path / "cache", part, encoder.preprocessing) for part in (walks[:PLACES], walks[PLACES:])
    )
    at = Validation(database, queries, 25.0).measure(encoder).report.recall[0].at
    ours = [cell.recall.value for cell in report.rows[1].cells[:3]]
    assert ours == pytest.approx([entry.recall.value for entry in at])


def test_a_folder_of_another_run(comparison: Comparison, tmp_path: Path) -> None:
    error = OtherRunError("the folder holds a run that differs in the photos", where="here")
    with pytest.raises(ComparisonError, match="remove this run's folder"):
        run(comparison, tmp_path, Trainer(raises={1: error}))


def test_other_errors_pass(comparison: Comparison, tmp_path: Path) -> None:
    with pytest.raises(SightfixError, match="no pairs"):
        run(comparison, tmp_path, Trainer(raises={1: SightfixError("no pairs")}))


def test_a_checkpoint_that_is_none(comparison: Comparison, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        run(replace(comparison, checkpoints={"mine": tmp_path}), tmp_path)


def test_no_solvable_query(comparison: Comparison, far_walks: list[Reference], tmp_path: Path) -> None:
    photos = replace(comparison.eval_sets[0], queries=tuple(far_walks))
    with pytest.raises(ParameterError, match=r"evaluation set walks: none of the 12 queries"):
        run(replace(comparison, eval_sets=(photos,)), tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recipes": ()}, "nothing to compare"),
        ({"photos": None}, "no photos to train on"),
        ({"eval_sets": ()}, "no evaluation set"),
        ({"seeds": 0}, "0 seeds train nothing"),
        ({"radii_m": (25.0, 25.0)}, "a radius is given twice"),
        ({"radii_m": (-1.0,)}, "not all above 0"),
        ({"recipes": (named("one"), named("one"))}, "the row 'one' is given 2 times"),
        ({"checkpoints": {"one": Path("x")}}, "the row 'one' is given 2 times"),
        ({"checkpoints": {"a/b": Path("x")}}, "'a/b' cannot be the name of a row"),
        ({"checkpoints": {"untrained": Path("x")}}, "the label 'untrained' is that of the net before training"),
        ({"baseline": "tripplet"}, "no method or row 'tripplet'"),
    ],
)
def test_a_plan_is_checked(comparison: Comparison, changes: dict[str, object], message: str) -> None:
    with pytest.raises(SightfixError, match=message):
        replace(comparison, **changes)  # type: ignore[arg-type]


def test_two_sets_of_one_name(comparison: Comparison) -> None:
    with pytest.raises(ComparisonError, match="the evaluation set 'walks' is given 2 times"):
        replace(comparison, eval_sets=comparison.eval_sets * 2)


class Stopping(Watching):
    """Sends SIGTERM after some batches of training."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self._left = after
        self.notes: list[str] = []

    @contextmanager
    def work(self, what: str, total: int, unit: str = "photos") -> Iterator[Callable[[int], None]]:
        def advance(_: int) -> None:
            if what.startswith("Epoch"):
                self._left -= 1
                if self._left == 0:
                    signal.raise_signal(signal.SIGTERM)

        yield advance

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_real_training_stopped_within_the_second_run(comparison: Comparison, tmp_path: Path) -> None:
    """Six queries, four pairs a batch: the first batch of the second run is interrupted, and the next call goes on."""
    quick = ("training.pairs=2", "training.epochs=2", "objective.head_width=16")
    comparison = replace(comparison, recipes=(named("one", *quick),))
    settings = TrainSettings(cache=tmp_path / "cache")
    compare(replace(comparison, seeds=1), tmp_path / "out", settings)
    with pytest.raises(TrainingStoppedError) as stopped:
        compare(comparison, tmp_path / "out", settings, Stopping(1))
    assert stopped.value.signal_number == signal.SIGTERM
    again = Stopping(-1)
    report = compare(comparison, tmp_path / "out", settings, again)
    assert again.notes == ["going on after epoch 0, batch 1"]
    assert again.headlines == ["1 of 2: one, seed 0 done", "2 of 2: one, seed 1"]
    assert compare(comparison, tmp_path / "at once", settings).rows == report.rows


def test_freed_memory_is_given_back_after_every_training(
    tmp_path: Path, walks: list[Reference], far_walks: list[Reference], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer()
    after: list[int] = []
    monkeypatch.setattr(
        "training.comparison.compare.give_back_freed_memory", lambda: after.append(len(trainer.runs)), raising=True
    )
    compare(plan_of(walks, far_walks), tmp_path / "out", TrainSettings(tmp_path / "cache"), None, trainer)
    assert after == list(range(1, len(trainer.runs) + 1))


def test_settings_added_later_leave_earlier_comparisons_where_they_were() -> None:
    recipe = load_recipe("simclr-efficientnet-lite0")
    assert network_hash(recipe) == "2da73c38e9b5"  # as it was before there were truncate_after and VLAD
    cut = load_recipe("simclr-efficientnet-lite0", ["network.truncate_after=blocks.5"])
    assert network_hash(cut) != network_hash(recipe)
