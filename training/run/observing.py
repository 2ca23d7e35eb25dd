"""What a run reports: to an observer, and into two CSV tables and TensorBoard's event files.

`steps.csv` has a row every few steps of the optimiser, `epochs.csv` one an epoch. A resumed run goes on in the same
files; rows of steps that are trained again are taken out first.
"""

import csv
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from retrieval.artefact import replace_file, storage_errors

if TYPE_CHECKING:
    from training.comparison.report import ComparisonReport

STEPS_NAME: Final = "steps.csv"
EPOCHS_NAME: Final = "epochs.csv"
TENSORBOARD_NAME: Final = "tensorboard"


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
    """Receives what a run does. The methods do nothing; the command line overrides them to draw bars and lines."""

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

    def epoch_ended(self, summary: EpochSummary) -> None:
        """An epoch is over and validated, if it was its turn."""


class ComparisonObserver(RunObserver):
    """Receives what a comparison does, and through the inherited methods what each run does."""

    def run_begins(self, number: int, total: int, label: str, seed: int, *, done: bool) -> None:
        """A run is next.

        Args:
            number: of the run, from 1.
            total: how many runs there are.
            label: the recipe's name.
            seed: of the run.
            done: whether it was trained and evaluated before, so that nothing is left to do.
        """

    def warning(self, text: str) -> None:
        """Something that makes numbers less than they seem, or missing."""

    def reported(self, report: "ComparisonReport") -> None:
        """Table and CSV were written anew."""


class CsvLog:
    """A table that grows by rows; its columns are those of its first row.

    Args:
        path: of the file; an earlier run's rows remain.
        resumed_step: rows whose `step` is larger are taken out; all of them where it is 0, for nothing was saved.
    """

    def __init__(self, path: Path, resumed_step: int) -> None:
        self._path = path
        self._columns: list[str] = []
        if path.exists():
            self._keep_until(resumed_step)

    def write(self, row: Mapping[str, float]) -> None:
        """Append a row and flush it; values without a column are left out, missing ones empty.

        Raises:
            StorageError: the disk refuses.
        """
        with storage_errors(self._path):
            begins = not self._columns
            if begins:
                self._columns = list(row)
            with self._path.open("a", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, self._columns, restval="", extrasaction="ignore")
                if begins:
                    writer.writeheader()
                writer.writerow({name: _format(value) for name, value in row.items()})

    def _keep_until(self, step: int) -> None:
        with self._path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            self._columns = list(reader.fieldnames or [])
            # A crash may have cut the last row short.
            rows = (
                [row for row in reader if None not in row.values() and _step_number(row.get("step")) <= step]
                if step
                else []
            )
        lines = [",".join(self._columns), *(",".join(row[name] for name in self._columns) for row in rows)]
        text = "\r\n".join(lines) + "\r\n" if self._columns else ""
        replace_file(self._path, text.encode())


class RunLog:
    """All logs of a run.

    Args:
        folder: of the run.
        resumed_step: where it goes on; 0 for a new run.
    """

    def __init__(self, folder: Path, resumed_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._steps = CsvLog(folder / STEPS_NAME, resumed_step)
            self._epochs = CsvLog(folder / EPOCHS_NAME, resumed_step)
            self._board: Any = SummaryWriter(
                str(folder / TENSORBOARD_NAME), purge_step=resumed_step + 1 if resumed_step else None
            )

    def step(self, epoch: float, step: int, values: Mapping[str, float]) -> None:
        """Log a step of the optimiser; `epoch` with its fraction."""
        self._steps.write({"epoch": round(epoch, 4), "step": step, **values})
        self._to_board("step", step, values)

    def epoch(self, epoch: int, step: int, values: Mapping[str, float]) -> None:
        """Log an epoch; 0 is the state before training."""
        self._epochs.write({"epoch": epoch, "step": step, **values})
        self._to_board("epoch", step, values)
        self._board.flush()

    def _to_board(self, prefix: str, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._board.add_scalar(f"{prefix}/{name}", value, step)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._board.close()


def _format(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.9g}"


def _step_number(text: str | None) -> int:
    try:
        return int(text or "")
    except ValueError:
        return 2**62
