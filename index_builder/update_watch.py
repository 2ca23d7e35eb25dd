"""Who looks on while an index is updated: told of every step, asked whether to go on."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from index_builder.index_design import Choice
    from index_builder.quality import GateReport

UpdateStep = Literal[
    "draft opened",
    "planned",
    "part written",
    "described",
    "vectors written",
    "references written",
    "manifest written",
    "gate passed",
    "version named",
    "current",
]


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A photo that will not be in the index.

    Attributes:
        path: below the root of its source where possible, with ``/``.
        code: of the error that its photo gave, or ``skipped`` where the source itself left it out.
        reason: one sentence without a full stop.
        remedy: what to do about it, or None.
    """

    path: str
    code: str
    reason: str
    remedy: str | None = None


@dataclass(frozen=True, slots=True)
class Update:
    """What an update makes of an index.

    Attributes:
        version: in which the result is found; the one there was if nothing had to change.
        base: the version that was current before, or None.
        count: references in it.
        added, replaced, kept, removed: references that are new, read again in place of old ones, taken over as they
            were, and no longer in it. ``added + replaced + kept = count``.
        taken_over: of those added or replaced, how many were not described, because the version before holds the
            descriptor of just their content, be it under another name.
        unreadable: photos of the source that could not be decoded.
        skipped: photos that the source left out.
        gate: what the gate measured; None if nothing had to change.
        activated: whether the version is current.
        choices: the types of index that ``auto`` considered.
    """

    version: str
    base: str | None
    count: int
    added: int
    replaced: int
    kept: int
    removed: int
    taken_over: int
    unreadable: int
    skipped: int
    gate: "GateReport | None"
    activated: bool
    choices: "Sequence[Choice]" = ()


class UpdateWatch:
    """Does nothing; a subclass overrides what it wants to know. Any method may raise, which ends the update."""

    def go_on(self) -> None:
        """Asked between batches and pieces of work; raises to stop, and nothing is published."""

    def reached(self, step: UpdateStep) -> None:
        """A step of the protocol is done."""

    def listed(self, count: int, left_out: Sequence[LeftOut]) -> None:
        """The source holds so many references; these photos it left out. Not told again after a restart."""

    def planned(self, total: int) -> None:
        """So many photos are to be described, those included that an earlier run described already."""

    def described(self, done: int, failed: int) -> None:
        """So many photos are done by now, so many of them unreadable."""

    def unreadable(self, photos: Sequence[LeftOut]) -> None:
        """These could not be decoded. May be told again after a restart."""

    def local_features(self, done: int, total: int, without: Sequence[LeftOut]) -> None:
        """So many references have their local features; these photos since then have none. Told anew each run."""

    def publishing(self, update: Update) -> None:
        """Called once before the version gets its name: the last moment to refuse."""

    def not_pruned(self, problem: str) -> None:
        """Old versions could not be removed. The new one is current all the same, and the next update tries again."""
