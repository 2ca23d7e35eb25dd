"""How fast an epoch goes, and its losses, read from the device as seldom as they are asked for."""

import math

import torch

from training.batch_trainer import BatchResult


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
