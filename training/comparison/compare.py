"""Train recipes with several seeds, evaluate them on several sets, and write one table; interrupted, go on.

Finished runs and finished evaluations are recorded, so that a second call does only what is missing.
"""

import platform
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Final

import torch

from retrieval import __version__
from retrieval.artefact import replace_file, storage_errors
from retrieval.errors import SightfixError, StorageError, counted
from retrieval.evaluation.eval_set import OVERLAP_M, Truth, overlap
from retrieval.images import Preprocessing
from retrieval.machine import available_cores
from training.checkpoint import Checkpoint, load_encoder, open_checkpoint
from training.comparison.definition import Comparison, ComparisonError, with_seed
from training.comparison.evaluation import (
    RUN_RECORD_NAME,
    EvalPhotos,
    EvaluationKey,
    EvaluationRecord,
    RunRecord,
    checkpoint_hash,
    checkpoint_row,
    evaluate_encoder,
    finished_run,
    network_hash,
    read_evaluation,
    training_photos_hash,
    untrained_checkpoint,
    write_record,
)
from training.comparison.report import UNTRAINED, ComparedRow, ComparisonReport, Epochs
from training.comparison.report_building import ReportBuilder, RowRecords
from training.comparison.table_text import csv_text, markdown
from training.recipe_settings import Recipe, TrainingSettings
from training.run.device import give_back_freed_memory, make_fabric
from training.run.observing import ComparisonObserver, RunObserver
from training.run.state import OtherRunError
from training.run.train import TrainingPhotos, TrainSettings
from training.run.train import train as train_recipe
from training.run.training_run import RunResult

TABLE_NAME: Final = "table.md"
CSV_NAME: Final = "table.csv"
_DIVERGED: Final = "diverged"  # the code of an error


Train = Callable[[Recipe, TrainingPhotos, Path, TrainSettings, RunObserver], RunResult]


def compare(
    comparison: Comparison,
    folder: Path,
    settings: TrainSettings | None = None,
    observer: ComparisonObserver | None = None,
    train: Train = train_recipe,
) -> ComparisonReport:
    """Compare recipes and checkpoints; writes `table.md` and `table.csv` after each run.

    Args:
        comparison: what is compared, and on what.
        folder: of the comparison: tables, `runs/RECIPE/seed-N/`, `untrained/`, `evaluations/`.
        settings: of each run; photos to evaluate on must all be readable.
        observer: receives progress and the table so far.
        train: trains one run; as `training.run.train.train`.

    Returns:
        The final report. A run that diverged is named in `missing`, and the others go on.

    Raises:
        ComparisonError: an evaluation set without a solvable query, or a run's folder that holds another run.
        TrainingStoppedError: a signal; the same call goes on from there.
        SightfixError: photos, weights, checkpoints, device, disk; see `train` and `load_encoder`.
    """
    run = _ComparisonRun(comparison, folder, settings or TrainSettings(), observer or ComparisonObserver(), train)
    return run.run()


class _ComparisonRun:
    def __init__(
        self,
        comparison: Comparison,
        folder: Path,
        settings: TrainSettings,
        observer: ComparisonObserver,
        train: Train,
    ) -> None:
        self.comparison, self.folder, self.settings = comparison, folder, settings
        self.observer, self.train = observer, train
        fabric = make_fabric(replace(settings.device, processes=1), TrainingSettings(pairs=1, epochs=1))
        self.device: torch.device = fabric.device
        self.truths = {photos.name: Truth.of(photos, comparison.protocol) for photos in comparison.eval_sets}
        self.identities = {photos.name: photos.identity() for photos in comparison.eval_sets}
        self.training_photos = "" if comparison.photos is None else training_photos_hash(comparison.photos)
        self.builder = ReportBuilder(self.truths, comparison.baseline)
        self.rows: dict[ComparedRow, RowRecords] = {}
        self.photos: dict[Preprocessing, EvalPhotos] = {}
        self.diverged: set[tuple[str, int]] = set()
        self.made_with: list[str] = []
        self.notes = self._overlaps()

    def run(self) -> ComparisonReport:
        for note in self.notes:
            self.observer.warning(note)
        given = {label: open_checkpoint(folder) for label, folder in self.comparison.checkpoints.items()}
        # Before anything is trained: unreadable photos and missing weights are errors.
        for image in (
            *(recipe.image for recipe in self.comparison.recipes),
            *(c.manifest.preprocessing for c in given.values()),
        ):
            self._decode(image)
        for recipe in self.comparison.recipes:
            self._add_untrained(recipe)
        for label, checkpoint in given.items():
            self._add_untrained_of(label, checkpoint)
            row = checkpoint_row(checkpoint, label, label)
            self._add(row, 1, 0, checkpoint, Epochs(checkpoint.manifest.epoch, None))
        # Finished runs first: tables that are written between runs have all of them.
        to_do = [run for run in enumerate(self.comparison.runs, 1) if not self._add_if_done(*run)]
        for number, (recipe, seed) in to_do:
            self._report()
            self.observer.run_begins(number, len(self.comparison.runs), recipe.name, seed, done=False)
            self._run(recipe, seed)
            give_back_freed_memory()
        return self._report()

    def _add_untrained(self, recipe: Recipe) -> None:
        name = network_hash(recipe)
        checkpoint = untrained_checkpoint(recipe, self.folder / UNTRAINED / name)
        row = replace(checkpoint_row(checkpoint, UNTRAINED, f"{UNTRAINED}-{name}"), method=UNTRAINED)
        if row not in self.rows:
            self._add(row, 1, 0, checkpoint, Epochs(0, None))

    def _add_untrained_of(self, label: str, checkpoint: Checkpoint) -> None:
        """The net that a given checkpoint started from, where its weights can be had here."""
        try:
            self._add_untrained(checkpoint.recipe)
        except StorageError:
            raise
        except SightfixError as error:
            note = f"No untrained row for {label}: {error.what}"
            self.notes.append(note)
            self.observer.warning(note)

    def _add_if_done(self, number: int, run: tuple[Recipe, int]) -> bool:
        """Add a run that is trained and evaluated, or say that it is not."""
        recipe, seed = run
        finished = finished_run(self._run_folder(recipe, seed), with_seed(recipe, seed), self.training_photos)
        if finished is None or len(self._recorded(finished[1], recipe.name, seed)) < len(self.truths):
            return False
        self.observer.run_begins(number, len(self.comparison.runs), recipe.name, seed, done=True)
        self._add_run(recipe, seed, *finished)
        return True

    def _run(self, recipe: Recipe, seed: int) -> None:
        """Train and evaluate one run, as far as that was not done before."""
        seeded, folder = with_seed(recipe, seed), self._run_folder(recipe, seed)
        try:
            finished = finished_run(folder, seeded, self.training_photos) or self._train(seeded, folder)
            self._add_run(recipe, seed, *finished)
        except SightfixError as error:
            if error.code != _DIVERGED:
                raise
            self.diverged.add((recipe.name, seed))
            self.observer.warning(str(error))

    def _add_run(self, recipe: Recipe, seed: int, record: RunRecord, checkpoint: Checkpoint) -> None:
        row = checkpoint_row(checkpoint, recipe.name, recipe.name)
        self._add(row, self.comparison.seeds, seed, checkpoint, Epochs(record.evaluated_epoch, record.trained_epochs))
        if record.made_with not in self.made_with:
            self.made_with.append(record.made_with)

    def _run_folder(self, recipe: Recipe, seed: int) -> Path:
        return self.folder / "runs" / recipe.name / f"seed-{seed}"

    def _train(self, recipe: Recipe, folder: Path) -> tuple[RunRecord, Checkpoint]:
        if self.comparison.photos is None:
            raise AssertionError("a comparison with recipes has photos")
        try:
            result = self.train(recipe, self.comparison.photos, folder, self.settings, self.observer)
        except OtherRunError as error:
            raise ComparisonError(
                error.what,
                where=error.where,
                remedy="Choose another --out, or remove this run's folder",
                code=error.code,
            ) from error
        checkpoint = open_checkpoint(result.best)
        record = RunRecord(
            recipe=recipe,
            photos=self.training_photos,
            checkpoint=result.best.name,
            encoder=checkpoint_hash(checkpoint),
            evaluated_epoch=checkpoint.manifest.epoch,
            trained_epochs=result.progress.epoch,
            made_with=machine_line(self.device),
        )
        write_record(folder / RUN_RECORD_NAME, record)
        return record, checkpoint

    def _add(self, row: ComparedRow, wanted: int, seed: int, checkpoint: Checkpoint, epochs: Epochs) -> None:
        found = self._evaluate(checkpoint, row.folder, seed)
        before = self.rows.get(row) or RowRecords(row, wanted, (), dict.fromkeys(self.truths, ()), ())
        self.rows[row] = before.with_seed(seed, found, epochs)

    def _record_path(self, row_folder: str, seed: int, name: str) -> Path:
        return self.folder / "evaluations" / row_folder / f"seed-{seed}" / f"{name}.json"

    def _keys(self, checkpoint: Checkpoint) -> dict[str, EvaluationKey]:
        """What a checkpoint's evaluation on each set depends on."""
        encoder, protocol = checkpoint_hash(checkpoint), self.comparison.protocol
        return {name: EvaluationKey.of(encoder, photos, protocol) for name, photos in self.identities.items()}

    def _recorded(self, checkpoint: Checkpoint, row_folder: str, seed: int) -> dict[str, EvaluationRecord]:
        """The evaluations of a checkpoint that are there, by the name of the set."""
        found = {
            name: read_evaluation(self._record_path(row_folder, seed, name), key)
            for name, key in self._keys(checkpoint).items()
        }
        return {name: record for name, record in found.items() if record is not None}

    def _evaluate(self, checkpoint: Checkpoint, row_folder: str, seed: int) -> dict[str, EvaluationRecord]:
        records = self._recorded(checkpoint, row_folder, seed)
        missing = {name: key for name, key in self._keys(checkpoint).items() if name not in records}
        if missing:
            encoder = load_encoder(checkpoint.folder)
            encoder.net.to(self.device)
            photos = self._decode(encoder.preprocessing)
            new = evaluate_encoder(encoder, photos, self.truths, missing, self.observer)
            for name, record in new.items():
                write_record(self._record_path(row_folder, seed, name), record)
            records |= new
        return records

    def _decode(self, image: Preprocessing) -> EvalPhotos:
        if image not in self.photos:
            self.photos[image] = EvalPhotos.decode(self.comparison.eval_sets, image, self.settings.cache, self.observer)
        return self.photos[image]

    def _overlaps(self) -> list[str]:
        if self.comparison.photos is None:
            return []
        notes = []
        for photos in self.comparison.eval_sets:
            near = overlap(self.comparison.photos.training, photos)
            if near is None:
                notes.append(f"Whether training photos lie near the queries of {photos.name} is unknown")
            elif near:
                training = counted(len(self.comparison.photos.training), "training photo")
                notes.append(
                    f"{near:,} of {training} lie within {OVERLAP_M:g} m of a query of {photos.name}: "
                    "its numbers are optimistic"
                )
        return notes

    def _missing(self) -> list[str]:
        there = {(records.row.label, seed) for records in self.rows.values() for seed in records.seeds}
        missing = []
        for recipe in self.comparison.recipes:
            seeds = [seed for seed in range(self.comparison.seeds) if (recipe.name, seed) not in there]
            texts = [f"{seed} (diverged)" if (recipe.name, seed) in self.diverged else str(seed) for seed in seeds]
            if texts:
                missing.append(f"{recipe.name}, {'seed' if len(texts) == 1 else 'seeds'} {', '.join(texts)}")
        return missing

    def _report(self) -> ComparisonReport:
        report = self.builder.build(
            list(self.rows.values()),
            missing=self._missing(),
            notes=self.notes,
            made_with=self.made_with or [machine_line(self.device)],
        )
        with storage_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            replace_file(self.folder / TABLE_NAME, markdown(report).encode())
            replace_file(self.folder / CSV_NAME, csv_text(report).encode())
        self.observer.reported(report)
        return report


def machine_line(device: torch.device) -> str:
    """Versions, and the processor that computed."""
    cpu = f"{platform.machine()} CPU, {counted(available_cores(), 'core')}"
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu
    return (
        f"sightfix {__version__}, PyTorch {torch.__version__}, timm {version('timm')}, "
        f"Python {platform.python_version()}; {where}"
    )
