"""What an update reports while it runs, how fast it goes, and what it made of the index in the end."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from index_builder.index_design import Choice
    from index_builder.quality import QualityReport
    from retrieval.images import LeftOut
    from retrieval.index.manifest import PlaceIndexManifest

UpdateStep = Literal[
    "draft opened",
    "adapted",
    "planned",
    "part written",
    "described",
    "vectors written",
    "references written",
    "bundle written",
    "manifest written",
    "quality checked",
    "version named",
    "current",
]


@dataclass(frozen=True, slots=True)
class Update:
    """What an update makes of an index.

    Attributes:
        folder: of the version that holds the result; while it is being published, where it will lie.
        manifest: of that version.
        base: the version that was current before, or None.
        added, replaced, kept, removed: references that are new, read again in place of old ones, taken over as they
            were, and no longer in it. ``added + replaced + kept`` are all of the version.
        taken_over: of those added or replaced, how many were not described, because the version before holds the
            descriptor of just their content, be it under another name.
        unreadable: photos of the source that could not be decoded.
        without_features: photos that have no local features, where the version holds those of the others.
        skipped: how many photos the source left out.
        quality: what the quality check measured; None if nothing had to change.
        activated: whether the version is current.
        choices: the types of index that ``auto`` considered.
    """

    folder: Path
    manifest: "PlaceIndexManifest"
    base: str | None
    added: int = 0
    replaced: int = 0
    kept: int = 0
    removed: int = 0
    taken_over: int = 0
    unreadable: "Sequence[LeftOut]" = ()
    without_features: "Sequence[LeftOut]" = ()
    skipped: int = 0
    quality: "QualityReport | None" = None
    activated: bool = True
    choices: "Sequence[Choice]" = ()

    @property
    def version(self) -> str:
        """The version's name; the one there was if nothing had to change."""
        return self.manifest.version

    @property
    def count(self) -> int:
        """References in it."""
        return self.manifest.count


class UpdateObserver:
    """Does nothing; a subclass overrides what it wants to know. Any method may raise, which ends the update."""

    def check_stopped(self) -> None:
        """Called between batches and pieces of work; raises to stop, and nothing is published."""

    def reached(self, step: UpdateStep) -> None:
        """A step of the protocol is done."""

    def listed(self, count: int, left_out: "Sequence[LeftOut]") -> None:
        """The source holds so many references; these photos it left out. Not reported again after a restart."""

    def adapting(self, done: int, total: int) -> None:
        """The bundle is being fitted to photos of the place; so many of them are read."""

    def planned(self, total: int) -> None:
        """So many photos are to be described, those included that an earlier run described already."""

    def described(self, done: int, failed: int) -> None:
        """So many photos are done by now, so many of them unreadable."""

    def unreadable(self, photos: "Sequence[LeftOut]") -> None:
        """These could not be decoded. May be reported again after a restart."""

    def local_features(self, done: int, total: int, without: "Sequence[LeftOut]") -> None:
        """So many references have their local features; these photos since then have none. Reported anew each run."""

    def publishing(self, update: Update) -> None:
        """Called once before the version gets its name: the last moment to refuse."""

    def not_pruned(self, problem: str) -> None:
        """Old versions could not be removed. The new one is current all the same, and the next update tries again."""


class PhotoRate:
    """Photos a second since the work began here: what an earlier run did does not count, nor does the first batch."""

    def __init__(self) -> None:
        self._began: tuple[float, int] | None = None
        self._done = 0

    def update(self, done: int) -> None:
        """Note how many photos are done by now."""
        self._done = done
        if self._began is None:
            self._began = (time.monotonic(), done)

    @property
    def per_second(self) -> float | None:
        """The rate, or None as long as nothing can be said."""
        if self._began is None or self._done <= self._began[1]:
            return None
        return (self._done - self._began[1]) / max(1e-3, time.monotonic() - self._began[0])
