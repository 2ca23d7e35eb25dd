"""A training run: epochs of batches of pairs, validation, checkpoints, and going on where it was interrupted.

The loop is Lightning Fabric's (devices, precision, gradient clipping, data parallelism) rather than Lightning's
Trainer: each epoch's batches are composed with the net as it then is, and a run must go on from the middle of an epoch
with the same losses, bit for bit, which the Trainer's own bookkeeping does not give.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from retrieval.errors import SightfixError
from training.checkpoint import checkpoint_exists, open_checkpoint, save_encoder
from training.encoder import Encoder, build_encoder, describe_cached
from training.geopair import EpochBatches, GeoPairs, PhotoTable
from training.objectives.pair_model import PairModel
from training.objectives.registry import objective_class
from training.photos.cache import PhotoCache
from training.recipe_settings import Recipe
from training.run.batch_trainer import BatchResult, BatchTrainer, learning_rate_factor
from training.run.device import DeviceSettings, StopSignals, make_fabric
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
from training.run.views import PairDataset, PairImages
from training.run.vocabulary import learn_vocabulary, photos_to_learn_from

if TYPE_CHECKING:
    from lightning.fabric import Fabric

BEST_NAME: Final = "best"
LAST_NAME: Final = "last"
_GPU_LOADERS: Final = 4
# Where nothing is validated, collapse is measured on descriptors of the latest queries.
_RECENT_DESCRIPTORS: Final = 512


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


class EpochMeter:
    """Photos and seconds of an epoch's training so far, its losses, and descriptors of its latest queries.

    Losses are added up on the device and read only when asked for: reading waits for the GPU.
    """

    def __init__(self) -> None:
        self._photos, self._seconds = 0, 0.0
        self._loss: torch.Tensor | None = None
        self._batches = 0
        self.recent_descriptors: list[torch.Tensor] = []

    def add(self, result: BatchResult, photos: int, seconds: float) -> None:
        """Count a batch."""
        self._photos += photos
        self._seconds += seconds
        loss = result.loss.double()
        self._loss = loss if self._loss is None else self._loss + loss
        self._batches += 1
        kept = max(1, _RECENT_DESCRIPTORS // len(result.descriptors))
        self.recent_descriptors = [*self.recent_descriptors, result.descriptors][-kept:]

    def take_losses(self) -> tuple[float, int]:
        """Sum and number of the losses since the last call."""
        taken = (0.0 if self._loss is None else float(self._loss), self._batches)
        self._loss, self._batches = None, 0
        return taken

    def photos_per_second(self) -> float:
        """Of training, without validation; NaN before the first batch."""
        return self._photos / self._seconds if self._seconds else math.nan


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
        observer: receives progress, notes and summaries of epochs.

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
        self._geopairs = _geopairs(recipe, self._table, self._fabric)
        torch.manual_seed(recipe.training.seed)
        self.encoder: Encoder = build_encoder(recipe.network, recipe.image)
        if recipe.network.aggregation == "vlad" and not checkpoint_exists(folder / LAST_NAME):
            self.encoder.net.to(self._fabric.device)
            with self._observer.work("Learning the vocabulary", photos_to_learn_from(photos)) as advance:
                learn_vocabulary(self.encoder, photos, recipe.training.seed, on_progress=advance)
        self._trainer = BatchTrainer(recipe, self.encoder, self._fabric)
        begin = Progress(hash_photos(photos, self._table), self._fabric.world_size)
        self._state = self._resumed(begin) or RunState(begin, None, self._geopairs.state_dict())
        self._meter = EpochMeter()

    @property
    def model(self) -> PairModel:
        """What is trained: the encoder's net, the objective and its momentum encoder."""
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
        last = self.folder / LAST_NAME
        if not self.progress.finished:
            with StopSignals(self._fabric) as signals, RunLog(self.folder, self.progress.step) as log:
                if self.progress.step == 0 and (untrained := self._measure()) is not None:
                    self._log_epoch(log, None, untrained, better=False)
                while not self._is_over(self.progress):
                    batches, own = self._epoch_batches()
                    order = own[self.progress.next_batch :]
                    self._trainer.train_mode()
                    self._meter, saved_at = EpochMeter(), time.monotonic()
                    work = f"Epoch {self.progress.epoch + 1} of {self.recipe.training.epochs}"
                    with self._observer.work(work, sum(batches.photos(index) for index in order)) as advance:
                        for images in self._load(batches, order):
                            began = time.monotonic()
                            rate, step = self._next_step(len(own))
                            result = self._trainer.train(images, self.progress.epoch, rate=rate, step=step)
                            photos = batches.photos(images.index)
                            self._meter.add(result, photos, time.monotonic() - began)
                            self._count_batch(result, len(own), rate, step, log)
                            advance(photos)
                            if step and self.progress.next_batch < len(own):
                                saved_at = self._save_if_due(saved_at, signals)
                    self._end_epoch(log, signals)
        return RunResult(self.folder / BEST_NAME if self.progress.best_epoch else last, last, self.progress)

    def _is_over(self, progress: Progress) -> bool:
        patience = self.recipe.validation.patience
        enough = patience > 0 and progress.without_better >= patience
        return progress.epoch >= self.recipe.training.epochs or enough

    def _epoch_batches(self) -> tuple[EpochBatches, range]:
        """The epoch's batches, and the indices of this process's."""
        batches = self._state.batches
        if batches is None:
            if self._fabric.is_global_zero:
                describe = self._describe if self._geopairs.needs_descriptors else None
                batches = self._geopairs.compose_epoch(self.progress.epoch, describe)
            # One process decides: on several GPUs descriptors may differ in their last bits.
            if self._fabric.world_size > 1:
                batches = self._fabric.broadcast(batches)
            assert batches is not None
        self._state = replace(self._state, batches=batches, geopairs=self._geopairs.state_dict())
        # Every process gets as many batches; the last few that cannot be shared out evenly are left to the next epoch.
        world = self._fabric.world_size
        own = range(self._fabric.global_rank, len(batches.batches) // world * world, world)
        if not own:
            raise TrainingError(
                f"{world} devices cannot share {len(batches.batches)} batches an epoch",
                remedy="Lower --devices or training.pairs, or give more photos",
            )
        return batches, own

    def _describe(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        with self._observer.work("Describing for this epoch's pairs", len(rows)) as advance:
            return describe_cached(self.encoder, self._photos, rows, on_progress=advance)

    def _load(self, batches: EpochBatches, order: Sequence[int]) -> DataLoader[PairImages]:
        on_gpu = self.device.type == "cuda"
        workers = self._device_settings.loader_workers
        if workers is None:
            workers = _GPU_LOADERS if on_gpu else 0
        return PairDataset(batches.batches, self._photos, self._table).load(order, workers=workers, pinned=on_gpu)

    def _next_step(self, batches: int) -> tuple[float, bool]:
        """The learning rate of the next batch, and whether the optimiser steps after it."""
        recipe, done = self.recipe, self.progress.next_batch + 1
        factor = learning_rate_factor(recipe.schedule, self.progress.epoch + done / batches, recipe.training.epochs)
        step = done == batches or done % recipe.training.accumulation == 0
        return recipe.optimiser.learning_rate * factor, step

    def _count_batch(self, result: BatchResult, batches: int, rate: float, stepped: bool, log: RunLog) -> None:
        done, step = self.progress.next_batch + 1, self.progress.step + stepped
        self._state = replace(self._state, progress=replace(self.progress, next_batch=done, step=step))
        logs = stepped and (step == 1 or step % self.recipe.training.log_every_steps == 0)
        if logs or done == batches:
            self._check_loss()
        if logs and self._fabric.is_global_zero:
            numbers = {name: float(scalar) for name, scalar in result.scalars.items()}
            speed = {"learning_rate": rate, "photos_per_second": self._meter.photos_per_second()}
            log.step(self.progress.epoch + done / batches, step, {**numbers, **speed})
            self._observer.loss(numbers["loss"])

    def _check_loss(self) -> None:
        """Add the losses since the last call to the progress."""
        progress, (loss_sum, batches) = self.progress, self._meter.take_losses()
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

    def _save_if_due(self, saved_at: float, signals: StopSignals) -> float:
        """Save within an epoch when it is time or a signal came; returns when it was last saved."""
        minutes = (time.monotonic() - saved_at) / 60
        due = signals.all_reduce_flags(0 < self.recipe.training.save_every_minutes <= minutes)
        if due or signals.received is not None:
            self._check_loss()
            self._save(LAST_NAME, None)
            saved_at = time.monotonic()
        self._stop_if(signals)
        return saved_at

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
            signals.all_reduce_flags(False)
            self._stop_if(signals)

    def _measure(self) -> Measured | None:
        """Recall as the net now is; every process gets the same."""
        if self._validation is None:
            return None
        measured: Measured | None = None
        if self._fabric.is_global_zero:
            with self._observer.work("Validating", self._validation.photos) as advance:
                measured = self._validation.measure(self.encoder, advance)
        return self._fabric.broadcast(measured) if self._fabric.world_size > 1 else measured

    def _log_epoch(self, log: RunLog, loss: float | None, measured: Measured | None, *, better: bool) -> None:
        if not self._fabric.is_global_zero:
            return
        progress, recipe = self.progress, self.recipe
        recalls: Mapping[str, float] = measured.recalls() if measured else {}
        collapse = measured.collapse if measured else None
        if self._validation is None and self._meter.recent_descriptors:
            collapse = measure_collapse(torch.cat(self._meter.recent_descriptors))
        values = {"loss": math.nan if loss is None else loss}
        values |= {f"recall_at_{n}": recalls.get(f"R@{n}", math.nan) for n in (1, 5, 10)}
        values["spread"] = collapse.spread if collapse else math.nan
        values["effective_rank"] = collapse.effective_rank if collapse else math.nan
        photos_per_second = self._meter.photos_per_second()
        values["photos_per_second"] = photos_per_second
        log.epoch(progress.epoch, progress.step, values)
        self._observer.epoch_ended(
            EpochSummary(
                epoch=progress.epoch,
                epochs=recipe.training.epochs,
                loss=loss,
                photos_per_second=None if loss is None else photos_per_second,
                recalls=recalls,
                chance=measured.report.recall[0].at[0].chance if measured else None,
                best=better,
                warning=collapse.warning if collapse else None,
            )
        )

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
        if not checkpoint_exists(self.folder / LAST_NAME):
            return None
        checkpoint = open_checkpoint(self.folder / LAST_NAME)
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


def _geopairs(recipe: Recipe, table: PhotoTable, fabric: "Fabric") -> GeoPairs:
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
