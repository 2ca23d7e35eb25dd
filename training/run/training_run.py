"""How fast an epoch goes, and its losses, read from the device as seldom as they are asked for."""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from numpy.typing import NDArray

from retrieval.errors import SightfixError
from training.checkpoint import open_checkpoint, save_encoder
from training.encoder import Encoder, build_encoder, describe_cached
from training.geopair import EpochPlan, GeoPairs, PhotoTable
from training.objectives.registry import objective_class
from training.photos.cache import PhotoCache
from training.recipe_settings import Recipe
from training.run.batch_trainer import BatchResult, BatchTrainer, PairModel, learning_rate_factor
from training.run.device import Agreement, DeviceSettings, StopSignals, make_fabric
from training.run.observing import EpochSummary, RunLog, RunObserver
from training.run.state import (
    Progress,
    RunState,
    check_same_photos,
    check_same_recipe,
    hash_photos,
    read_run_state,
    write_run_state,
)
from training.run.validation import Measured, Validation, measure_collapse
from training.run.views import PairImages, PlannedImages, load_batches, photo_count

if TYPE_CHECKING:
    from lightning.fabric import Fabric


class Pace:
    """Photos and seconds of training so far in this epoch, and losses that were not read yet."""

    def __init__(self) -> None:
        self._photos, self._seconds = 0, 0.0
        self._loss: torch.Tensor | None = None
        self._batches = 0

    def add(self, result: BatchResult, photos: int, seconds: float) -> None:
        """Count a batch."""
        self._photos += photos
        self._seconds += seconds
        loss = result.loss.double()
        self._loss = loss if self._loss is None else self._loss + loss
        self._batches += 1

    def take_losses(self) -> tuple[float, int]:
        """Sum and number of the losses since the last call."""
        taken = (0.0 if self._loss is None else float(self._loss), self._batches)
        self._loss, self._batches = None, 0
        return taken

    def photos_per_second(self) -> float:
        """Of training, without validation; NaN before the first batch."""
        return self._photos / self._seconds if self._seconds else math.nan


# A training run: epochs of planned pairs, validation, checkpoints, and going on where it was interrupted.
#
# The loop is Lightning Fabric's (devices, precision, gradient clipping, data parallelism) rather than Lightning's
# Trainer: each epoch's batches are planned with the net as it then is, and a run must go on from the middle of an epoch
# with the same losses, bit for bit, which the Trainer's own bookkeeping does not give.

BEST_NAME: Final = "best"

LAST_NAME: Final = "last"

_GPU_LOADERS: Final = 4

# Descriptors of the latest queries, kept to see a collapse where nothing is validated.
_WATCHED: Final = 512

_FEWEST_WATCHED: Final = 8


class TrainingError(SightfixError):
    """A run that cannot begin, go on or end well."""

    default_code = "training"


class TrainingStoppedError(TrainingError):
    """A signal ended the run early; the `last` checkpoint was saved, and the same command goes on from there.

    Attributes:
        signal_number: which signal.
    """

    default_code = "stopped"

    def __init__(self, what: str, *, where: str, remedy: str, signal_number: int) -> None:
        super().__init__(what, where=where, remedy=remedy)
        self.signal_number = signal_number


@dataclass(frozen=True, slots=True)
class RunResult:
    """A finished run.

    Attributes:
        best: the checkpoint of the highest validation recall; the last one where nothing was validated.
        last: the checkpoint after the last epoch.
        progress: how it ended.
    """

    best: Path
    last: Path
    progress: Progress


class TrainingRun:
    """One recipe trained on one set of photos into one folder.

    Args:
        recipe: decides everything but the photos.
        photos: to train on.
        validation: what recall is measured on, or None to train without.
        folder: of the run: `best/`, `last/`, `steps.csv`, `epochs.csv`, `tensorboard/`. Where it holds a `last`
            checkpoint of the same recipe and photos, the run goes on from it.
        photos_name: what the checkpoint shall say it was trained on.
        device: where to compute.
        observer: is told what happens.

    Raises:
        GeoPairError: the photos make no pairs.
        OtherRunError: the folder holds a run of another recipe or of other photos.
        SightfixError: weights, device, objective: see `build_encoder`, `make_fabric`, `build_objective`.
    """

    def __init__(
        self,
        recipe: Recipe,
        photos: PhotoCache,
        validation: Validation | None,
        folder: Path,
        *,
        photos_name: str,
        device: DeviceSettings | None = None,
        observer: RunObserver | None = None,
    ) -> None:
        self.recipe = recipe
        self.folder = folder
        self._device_settings = device or DeviceSettings()
        self._observer = observer or RunObserver()
        self._photos, self._validation = photos, validation
        self._photos_name = f"{photos_name}, {len(photos)} photos"
        self._table = PhotoTable.from_references(photos.references)
        self._fabric = make_fabric(self._device_settings, recipe.training)
        if self._device_settings.processes > 1:
            self._fabric.launch()
        self._agreement = Agreement(self._fabric)
        self._geopairs = _planner(recipe, self._table, self._fabric)
        torch.manual_seed(recipe.training.seed)
        self.encoder: Encoder = build_encoder(recipe.network, recipe.image)
        self._trainer = BatchTrainer(recipe, self.encoder, self._fabric)
        begin = Progress(hash_photos(photos, self._table), self._fabric.world_size)
        self._state = self._resumed(begin) or RunState(begin, None, self._geopairs.state_dict())
        self._pace = Pace()
        self._watched: list[torch.Tensor] = []

    @property
    def model(self) -> PairModel:
        """What is trained: the encoder's net, the objective and its target."""
        return self._trainer.model

    @property
    def device(self) -> torch.device:
        """Where it is trained."""
        device: torch.device = self._fabric.device
        return device

    @property
    def progress(self) -> Progress:
        """How far the run is."""
        return self._state.progress

    def run(self) -> RunResult:
        """Train to the end.

        Raises:
            TrainingStoppedError: SIGTERM or Ctrl-C; the run was saved.
            TrainingError: the loss is no longer finite; the last checkpoint is as it was.
            StorageError: the disk refuses a checkpoint; the previous one is intact.
        """
        if not self.progress.finished:
            with StopSignals() as signals, RunLog(self.folder, self.progress.step) as log:
                if self.progress.step == 0:
                    self._validate_untrained(log)
                while not self._is_over(self.progress):
                    self._train_epoch(log, signals)
                    self._end_epoch(log, signals)
        last = self.folder / LAST_NAME
        return RunResult(self.folder / BEST_NAME if self.progress.best_epoch else last, last, self.progress)

    def _is_over(self, progress: Progress) -> bool:
        patience = self.recipe.validation.patience
        enough = patience > 0 and progress.without_better >= patience
        return progress.epoch >= self.recipe.training.epochs or enough

    # ---- one epoch ----

    def _train_epoch(self, log: RunLog, signals: StopSignals) -> None:
        epoch, settings = self.progress.epoch, self.recipe.training
        plan = self._state.plan or self._plan(epoch)
        self._state = replace(self._state, plan=plan, geopairs=self._geopairs.state_dict())
        # Every process gets as many batches; the last few that cannot be shared out evenly are left to the next epoch.
        world = self._fabric.world_size
        own = range(self._fabric.global_rank, len(plan.batches) // world * world, world)
        if not own:
            raise TrainingError(
                f"{world} devices cannot share {len(plan.batches)} batches an epoch",
                remedy="Lower --devices or training.pairs, or give more photos",
            )
        order = own[self.progress.next_batch :]
        on_gpu = self._fabric.device.type == "cuda"
        workers = self._device_settings.loader_workers
        loader = load_batches(
            PlannedImages(plan.batches, self._photos, self._table),
            order,
            workers=(_GPU_LOADERS if on_gpu else 0) if workers is None else workers,
            pinned=on_gpu,
        )
        self._trainer.train_mode()
        self._pace, self._watched, saved_at = Pace(), [], time.monotonic()
        total = sum(photo_count(plan.batches[index]) for index in order)
        with self._observer.work(f"Epoch {epoch + 1} of {settings.epochs}", total) as advance:
            for images in loader:
                last = self.progress.next_batch + 1 == len(own)
                stepped = self._train_batch(images, len(own), last=last, log=log)
                advance(images.count)
                if not stepped or last:
                    continue
                minutes = (time.monotonic() - saved_at) / 60
                due, signals.received = self._agreement.on(0 < settings.save_every_minutes <= minutes, signals.received)
                if due or signals.received is not None:
                    self._check_loss()
                    self._save(LAST_NAME, None)
                    saved_at = time.monotonic()
                self._stop_if(signals)

    def _train_batch(self, images: PairImages, batches: int, *, last: bool, log: RunLog) -> bool:
        recipe, progress = self.recipe, self.progress
        began = time.monotonic()
        done = progress.next_batch + 1
        epochs = progress.epoch + done / batches
        factor = learning_rate_factor(recipe.schedule, epochs, recipe.training.epochs)
        rate = recipe.optimiser.learning_rate * factor
        steps = last or done % recipe.training.accumulation == 0
        result = self._trainer.train(images, progress.epoch, rate=rate, steps=steps)
        step = progress.step + steps
        logs = steps and (step == 1 or step % recipe.training.log_every_steps == 0)
        # Reading a loss waits for the GPU, so it is added up there and read only now and then.
        self._pace.add(result, images.count, time.monotonic() - began)
        self._watch(result)
        self._state = replace(self._state, progress=replace(progress, next_batch=done, step=step))
        if logs or last:
            self._check_loss()
        if logs and self._fabric.is_global_zero:
            numbers = {name: float(scalar) for name, scalar in result.scalars.items()}
            pace = {"learning_rate": rate, "photos_per_second": self._pace.photos_per_second()}
            log.step(epochs, step, {**numbers, **pace})
            self._observer.loss(numbers["loss"])
        return steps

    def _check_loss(self) -> None:
        progress, (loss_sum, batches) = self.progress, self._pace.take_losses()
        if not math.isfinite(loss_sum):
            raise TrainingError(
                f"the loss is {loss_sum} by step {progress.step}: training has diverged",
                where=str(self.folder),
                remedy="Lower optimiser.learning_rate, set training.clip_norm=1, or train in fp32",
                code="diverged",
            )
        progress = replace(
            progress, loss_sum=progress.loss_sum + loss_sum, loss_batches=progress.loss_batches + batches
        )
        self._state = replace(self._state, progress=progress)

    def _end_epoch(self, log: RunLog, signals: StopSignals) -> None:
        before, validation = self.progress, self.recipe.validation
        loss = before.loss_sum / max(1, before.loss_batches)
        progress = replace(before, epoch=before.epoch + 1, next_batch=0, loss_sum=0.0, loss_batches=0)
        measured = None
        if progress.epoch % validation.every_epochs == 0 or progress.epoch == self.recipe.training.epochs:
            measured = self._measure()
        if measured is not None:
            progress = progress.with_recall(measured.recalls()[f"R@{validation.recall_at}"])
        progress = replace(progress, finished=self._is_over(progress))
        self._state = RunState(progress, None, self._geopairs.state_dict())
        better = measured is not None and progress.best_epoch == progress.epoch
        if better:
            self._save(BEST_NAME, measured, resumable=False)
        self._save(LAST_NAME, measured)
        self._log_epoch(log, loss, measured, better=better)
        if not progress.finished:
            _, signals.received = self._agreement.on(False, signals.received)
            self._stop_if(signals)

    def _plan(self, epoch: int) -> EpochPlan:
        plan: EpochPlan | None = None
        if self._fabric.is_global_zero:
            plan = self._geopairs.plan_epoch(epoch, self._describe if self._geopairs.needs_descriptors else None)
        # One process decides: on several GPUs descriptors may differ in their last bits.
        if self._fabric.world_size > 1:
            plan = self._fabric.broadcast(plan)
        assert plan is not None
        return plan

    def _describe(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        with self._observer.work("Describing for this epoch's pairs", len(rows)) as advance:
            return describe_cached(self.encoder, self._photos, rows, on_progress=advance)

    # ---- validation ----

    def _validate_untrained(self, log: RunLog) -> None:
        measured = self._measure()
        if measured is not None:
            self._log_epoch(log, None, measured, better=False)

    def _measure(self) -> Measured | None:
        """Recall as the net now is; every process gets the same."""
        if self._validation is None:
            return None
        measured: Measured | None = None
        if self._fabric.is_global_zero:
            with self._observer.work("Validating", self._validation.photos) as advance:
                measured = self._validation.measure(self.encoder, advance)
        return self._fabric.broadcast(measured) if self._fabric.world_size > 1 else measured

    def _watch(self, result: BatchResult) -> None:
        if self._validation is None:
            self._watched = [*self._watched, result.descriptors][-max(1, _WATCHED // len(result.descriptors)) :]

    def _log_epoch(self, log: RunLog, loss: float | None, measured: Measured | None, *, better: bool) -> None:
        if not self._fabric.is_global_zero:
            return
        progress, recipe = self.progress, self.recipe
        recalls: Mapping[str, float] = measured.recalls() if measured else {}
        collapse = measured.collapse if measured else None
        watched = torch.cat(self._watched) if self._watched else torch.empty(0, 1)
        if collapse is None and len(watched) >= _FEWEST_WATCHED:
            collapse = measure_collapse(watched)
        values = {"loss": math.nan if loss is None else loss}
        values |= {f"recall_at_{n}": recalls.get(f"R@{n}", math.nan) for n in (1, 5, 10)}
        values["spread"] = collapse.spread if collapse else math.nan
        values["effective_rank"] = collapse.effective_rank if collapse else math.nan
        pace = self._pace.photos_per_second()
        values["photos_per_second"] = pace
        log.epoch(progress.epoch, progress.step, values)
        self._observer.epoch_ended(
            EpochSummary(
                epoch=progress.epoch,
                epochs=recipe.training.epochs,
                loss=loss,
                photos_per_second=None if loss is None else pace,
                recalls=recalls,
                chance=measured.report.recall[0].at[0].chance if measured else None,
                best=better,
                warning=collapse.warning if collapse else None,
            )
        )

    # ---- checkpoints ----

    def _save(self, name: str, measured: Measured | None, *, resumable: bool = True) -> None:
        if self._fabric.is_global_zero:
            stated = {}
            if measured is not None and self._validation is not None:
                radius = f"{self._validation.radius_m:g} m"
                stated = {f"validation {n} {radius}": value for n, value in measured.recalls().items()}
            encoder = self.encoder.trained(self.recipe.objective.name, self._photos_name, stated)
            state, trainer = self._state, self._trainer
            save_encoder(
                self.folder / name,
                encoder,
                self.recipe,
                epoch=self.progress.epoch,
                write_trainer_state=(
                    (lambda path: write_run_state(path, self._fabric, trainer.model, trainer.optimiser, state))
                    if resumable
                    else None
                ),
            )
        self._fabric.barrier()

    def _stop_if(self, signals: StopSignals) -> None:
        if signals.received is None:
            return
        progress = self.progress
        batch = f", batch {progress.next_batch}" if progress.next_batch else ""
        raise TrainingStoppedError(
            f"stopped by {signals.received.name} after epoch {progress.epoch}{batch}; the run is saved",
            where=str(self.folder),
            remedy="Give the same command again to go on from there",
            signal_number=int(signals.received),
        )

    def _resumed(self, begin: Progress) -> RunState | None:
        folder = self.folder / LAST_NAME
        if not folder.exists() and not folder.with_name(f".previous-{LAST_NAME}").exists():
            return None
        checkpoint = open_checkpoint(folder)
        check_same_recipe(checkpoint.recipe, self.recipe, self.folder)
        state = read_run_state(checkpoint.trainer_state(), self._fabric, self._trainer.model, self._trainer.optimiser)
        check_same_photos(state.progress, begin, self.folder)
        self._geopairs.load_state_dict(state.geopairs)
        progress = state.progress
        if progress.epoch < self.recipe.training.epochs and not self._is_over(progress):
            progress = replace(progress, finished=False)  # more epochs are asked for than before
        at = f"epoch {progress.epoch}" + (f", batch {progress.next_batch}" if progress.next_batch else "")
        self._observer.note("the run is finished" if progress.finished else f"going on after {at}")
        return replace(state, progress=progress)


def _planner(recipe: Recipe, table: PhotoTable, fabric: "Fabric") -> GeoPairs:
    min_pairs = objective_class(recipe.objective.name).min_pairs  # the two views of a mined negative are a pair too
    return GeoPairs(
        table,
        recipe.geopair,
        queries_per_batch=recipe.queries_per_batch,
        queries_per_epoch=recipe.training.queries_per_epoch,
        seed=recipe.training.seed,
        min_queries=math.ceil(min_pairs * recipe.queries_per_batch / recipe.training.pairs),
        equal_batches=fabric.world_size > 1,
        separate_negatives=recipe.views_of_negatives,
    )
