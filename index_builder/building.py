"""Build a place index: describe the references, order them along a spatial curve, check, publish.

A build that is killed or fails goes on, when it is called again, with what was described already.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from index_builder.described_parts import DEFAULT_PART_PHOTOS
from index_builder.describing import DescribeSettings, too_many_unreadable
from index_builder.gate import GateSettings
from index_builder.part_describing import Engine
from index_builder.publishing import DEFAULT_KEEP
from index_builder.update_watch import LeftOut, Update, UpdateStep, UpdateWatch
from index_builder.updating import IndexUpdater, UpdateSettings
from index_builder.vectors.design import IndexDesign
from retrieval.describer import Describer
from retrieval.errors import ImageError, PlaceIndexError, ReferenceDataError
from retrieval.index_folder import VERSIONS_NAME
from retrieval.place_index_manifest import PlaceIndexManifest
from retrieval.references.reference import ReferenceSource

Step = UpdateStep

# The gate describes photos again. Where somebody waits, of a small index that is a small share of them.
_CANARY_SHARE: Final = 25


@dataclass(frozen=True, slots=True)
class BuildSettings:
    """How an index is built.

    Attributes:
        design: of the index.
        describe: how the references are described.
        keep: how many versions remain after publishing, the new one included.
        describe_again: describe all photos, also those whose content the current version has described just so.
        engine: who describes: this process, or a Ray cluster.
        part_photos: photos described between two points from which a killed build goes on.
    """

    design: IndexDesign = field(default_factory=IndexDesign)
    describe: DescribeSettings = field(default_factory=DescribeSettings)
    keep: int = DEFAULT_KEEP
    describe_again: bool = False
    engine: Engine = "local"
    part_photos: int = DEFAULT_PART_PHOTOS


@dataclass(frozen=True, slots=True)
class BuiltIndex:
    """A published version.

    Attributes:
        folder: of it.
        manifest: of it.
        unreadable: the photos that are not in it because they could not be decoded.
        update: what it changed of the version before.
        without_features: the photos in it that have no local features, though it holds those of the others.
    """

    folder: Path
    manifest: PlaceIndexManifest
    unreadable: list[LeftOut]
    update: Update
    without_features: list[LeftOut]


def build_index(
    source: ReferenceSource,
    describer: Describer,
    indexes: Path,
    name: str,
    settings: BuildSettings | None = None,
    *,
    on_progress: Callable[[int], None] | None = None,
    on_step: Callable[[Step], None] | None = None,
    watch: UpdateWatch | None = None,
) -> BuiltIndex:
    """Describe a reference database and publish it as the new version of an index.

    What was described lies in a hidden folder of the index until it is published: after a failure, `kill -9` included,
    the same call goes on from there. What of it still fits is decided by bundle, precision, limits, rows, and the size
    and time of each photo's file.

    Args:
        source: the reference database.
        describer: of the bundle to describe it with.
        indexes: the folder of all indexes.
        name: of this index.
        settings: how.
        on_progress: called after each batch with the number of references done in it, first with what was done before.
        on_step: called after each step of the protocol.
        watch: told of everything else.

    Raises:
        ReferenceDataError: no rows, a row without a position, two rows of one id, or too many unreadable photos.
        StorageError: the disk is full or refuses, or another build of this index is running; nothing is published.
        PlaceIndexError: the written version does not answer as it should; nothing is published.
        MissingExtraError: the engine is not installed, or OpenCV where local features are wanted.
    """
    settings = settings or BuildSettings()
    update_settings = UpdateSettings(
        design=settings.design,
        describe=settings.describe,
        part_photos=settings.part_photos,
        engine=settings.engine,
        gate=GateSettings(limits=settings.describe.limits),
        canary_share=_CANARY_SHARE,
        keep=settings.keep,
    )
    ears = _Ears(watch or UpdateWatch(), on_progress, on_step)
    updater = IndexUpdater(describer, indexes, name, settings=update_settings, watch=ears)
    try:
        update = updater.build(source, describe_again=settings.describe_again)
    except ReferenceDataError as error:
        if error.code != "too_many_unreadable" or not ears.left_out:
            raise
        one = ears.left_out[0]
        where = str(source.root / one.path)
        named = ImageError(one.reason, where=where, code=one.code)
        raise too_many_unreadable(named, len(ears.left_out), settings.describe.max_unreadable) from None
    folder = indexes / name / VERSIONS_NAME / update.version
    manifest = PlaceIndexManifest.read(folder, PlaceIndexError)
    return BuiltIndex(folder, manifest, ears.left_out, update, ears.without_features)


class _Ears(UpdateWatch):
    """Passes on what it hears."""

    def __init__(
        self, watch: UpdateWatch, on_progress: Callable[[int], None] | None, on_step: Callable[[Step], None] | None
    ) -> None:
        self.left_out: list[LeftOut] = []
        self.without_features: list[LeftOut] = []
        self._watch = watch
        self._on_progress = on_progress
        self._on_step = on_step
        self._done = 0

    def go_on(self) -> None:
        self._watch.go_on()

    def reached(self, step: UpdateStep) -> None:
        self._watch.reached(step)
        if self._on_step:
            self._on_step(step)

    def listed(self, count: int, left_out: Sequence[LeftOut]) -> None:
        self._watch.listed(count, left_out)

    def planned(self, total: int) -> None:
        self._watch.planned(total)

    def described(self, done: int, failed: int) -> None:
        self._watch.described(done, failed)
        if self._on_progress and done > self._done:
            self._on_progress(done - self._done)
        self._done = done

    def unreadable(self, photos: Sequence[LeftOut]) -> None:
        self.left_out.extend(photos)
        self._watch.unreadable(photos)

    def local_features(self, done: int, total: int, without: Sequence[LeftOut]) -> None:
        self.without_features.extend(without)
        self._watch.local_features(done, total, without)

    def publishing(self, update: Update) -> None:
        self._watch.publishing(update)

    def not_pruned(self, problem: str) -> None:
        self._watch.not_pruned(problem)
