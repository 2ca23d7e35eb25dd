"""A worker that kills itself: ``python -m tests.service.jobs.killed_worker STEP FOLDER SETTINGS [--flag]``.

It dies when it reaches the step for the first time, and only once: a file in the folder remembers it. The ids of all
photos that were described for a part are appended to a file beside it, one a line. STEP `never` only writes those down.
"""

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from index_builder import parts
from retrieval import artefact
from service.jobs import worker
from service.jobs.work_queue import WorkQueue
from service.jobs.worker import JobObserver

STEPS = [
    "draft opened",
    "listed",
    "planned",
    "describing",
    "half a part",
    "part written",
    "described",
    "vectors written",
    "references written",
    "manifest written",
    "quality checked",
    "before publishing",
    "after publishing",
    "version named",
    "half of CURRENT",
    "current",
    "before success",
]


class Death:
    """Comes once, at one step."""

    def __init__(self, step: str, folder: Path) -> None:
        self._step = step
        self._marker = folder / "died"

    def at(self, step: str) -> None:
        """No handler, no `finally`, no flush: what a power cut leaves to the process."""
        if step == self._step and not self._marker.exists():
            self._marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    def around(self, owner: Any, name: str, before: str | None, after: str | None) -> None:
        """Come before or after a method."""
        method = getattr(owner, name)

        def wrapped(*arguments: Any, **named: Any) -> Any:
            if before:
                self.at(before)
            result = method(*arguments, **named)
            if after:
                self.at(after)
            return result

        setattr(owner, name, wrapped)


def main(given: Sequence[str]) -> int:
    """Work, and die on the way."""
    step, folder, *arguments = given
    death = Death(step, Path(folder))
    death.around(JobObserver, "listed", None, "listed")
    death.around(JobObserver, "described", None, "describing")
    death.around(JobObserver, "publishing", "before publishing", "after publishing")
    death.around(WorkQueue, "succeed", "before success", None)
    reached, describe, flushed = JobObserver.reached, parts.describe_photos, artefact.write_flushed

    def dying_reached(observer: JobObserver, step: Any) -> None:
        reached(observer, step)
        death.at(step)

    def logged(*arguments: Any, **named: Any) -> Iterator[Any]:
        for batch in describe(*arguments, **named):
            described = [Path(photo.path) for photo in batch.photos if photo.error is None and photo.stored_row is None]
            with (Path(folder) / "described").open("a") as file:
                file.writelines(f"{path.parent.name}/{path.name}\n" for path in described)
            yield batch

    def write_flushed(path: Path, data: bytes) -> None:
        if path.name == ".CURRENT.tmp":
            flushed(path, data[:7])
            death.at("half of CURRENT")
        if path.name.startswith(".part-") and data.startswith(b"{"):
            flushed(path, data[:7])
            death.at("half a part")
        flushed(path, data)

    JobObserver.reached = dying_reached  # type: ignore[method-assign]
    parts.describe_photos = logged  # type: ignore[assignment]
    artefact.write_flushed = write_flushed
    return worker.main(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
