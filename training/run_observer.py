"""Who watches a run: the command line draws bars and lines, tests collect, the default is silent."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class EpochSummary:
    """What an epoch did.

    Attributes:
        epoch: from 1; 0 for the state before training.
        epochs: of the whole run at most.
        loss: mean over the epoch's batches, or None before training.
        photos_per_second: trained on, without planning and validation; None before training.
        recalls: by N such as `R@1`, 0 to 1; empty where nothing was measured.
        chance: of recall@1, or None.
        best: whether this is the best checkpoint so far.
        warning: a collapse, or None.
    """

    epoch: int
    epochs: int
    loss: float | None
    photos_per_second: float | None
    recalls: Mapping[str, float]
    chance: float | None
    best: bool
    warning: str | None


class RunObserver:
    """Is told what a run does; every method may be overridden."""

    @contextmanager
    def work(self, what: str, total: int, unit: str = "photos") -> Iterator[Callable[[int], None]]:
        """Something that takes a while: yields the function that is called with the units just done.

        Args:
            what: such as "Decoding" or "Epoch 3 of 5".
            total: units in all.
            unit: what is counted.
        """
        yield lambda done: None

    def note(self, text: str) -> None:
        """Something to know, such as photos left out or a run that goes on."""

    def loss(self, value: float) -> None:
        """The loss, every few steps."""

    def saved(self, folder: Path) -> None:
        """A checkpoint was written."""

    def epoch_ended(self, summary: EpochSummary) -> None:
        """An epoch is over and validated, if it was its turn."""
