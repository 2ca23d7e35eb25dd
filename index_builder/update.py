"""Update a place index: a new version made anew, with references appended, or with some removed.

The work survives a crash: what was listed and described lies in a work folder, and the same call goes on from there.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from index_builder.calibration_queries import OutsidePhotos, calibration_photos_of
from index_builder.describing import (
    DescribeSettings,
    KnownContent,
    describing_record,
    known_content,
    too_many_unreadable,
)
from index_builder.index_design import Choice, IndexDesign
from index_builder.local_features import FeaturesPlan
from index_builder.parts import (
    DEFAULT_PART_PHOTOS,
    DescribedParts,
    Engine,
    PartSettings,
    describe_in_parts,
    plan_parts,
    work_for_itself,
)
from index_builder.publish import DEFAULT_KEEP, WORK_NAME, Draft, check_free_space, draft_version, remove_old_versions
from index_builder.quality import GateReport, GateSettings, check_version
from index_builder.update_plan import (
    UpdatePlan,
    list_source,
    paths_below,
    plan_append,
    plan_full,
    plan_remove,
    read_rows,
)
from index_builder.update_watch import LeftOut, Update, UpdateStep, UpdateWatch
from index_builder.version_writer import VersionContent, write_version
from retrieval.artefact import MANIFEST_NAME, storage_errors, verify_files
from retrieval.describer import Describer, Descriptors
from retrieval.errors import ImageError, IndexNotFoundError, PlaceIndexError, ReferenceDataError
from retrieval.index.folder import CURRENT_NAME, VERSIONS_NAME, check_index_name, current_version
from retrieval.index.manifest import DescribingRecord, PlaceIndexManifest
from retrieval.index.place_index import REFERENCES_NAME, PlaceIndex
from retrieval.index.reference_table import REFERENCE_SCHEMA
from retrieval.index.vectors.exact import Storage
from retrieval.references.reference import ReferenceSource
from retrieval.reranking.local_features import FeatureSettings, opencv_module

_BYTES_OF_A_ROW: Final = 512

_LEAST_CANARIES: Final = 4

_STORED_BYTES: Final[dict[Storage, int]] = {"fp32": 4, "fp16": 2, "int8": 1}


@dataclass(frozen=True, slots=True)
class UpdateSettings:
    """How an index is updated.

    Attributes:
        design: of an index made anew; what is appended to or removed from stays as it was designed.
        describe: how references are described.
        part_photos: photos described between two points from which a killed update goes on.
        engine: who describes: this process, or a Ray cluster.
        gate: what the new version must reach.
        canary_share: of a small index the gate takes only one reference in so many, yet four.
        activate: whether it becomes current; else it is published beside the current one, to be activated by hand.
        keep: how many versions remain after one became current.
    """

    design: IndexDesign = field(default_factory=IndexDesign)
    describe: DescribeSettings = field(default_factory=DescribeSettings)
    part_photos: int = DEFAULT_PART_PHOTOS
    engine: Engine = "local"
    gate: GateSettings = field(default_factory=GateSettings)
    canary_share: int = 1
    activate: bool = True
    keep: int = DEFAULT_KEEP


@dataclass(frozen=True)
class IndexUpdater:
    """Updates one index. All three calls raise the same errors, and publish nothing when they do.

    Args:
        describer: of the bundle that the index is made with.
        indexes: the folder of all indexes.
        name: of this index.
        work: a folder of this update alone, which its owner removes; what an earlier run left there is used, the
            listing of the source included. None for a hidden one below the index, which is gone when all is done; then
            the source is listed each time, and those parts are used that still fit.
        settings: how.
        watch: told of every step; what it raises ends the update.

    Raises:
        ReferenceDataError: a source that cannot be read, too many unreadable photos, ids that clash, nothing left.
        IndexNotFoundError: nothing to append to or remove from.
        ModelIndexMismatchError: append or remove with another bundle than the current version's.
        StorageError: the disk is full or refuses, or another process is building this index.
        PlaceIndexError: the new version does not pass the gate; another version became current meanwhile.
    """

    describer: Describer
    indexes: Path
    name: str
    work: Path | None = None
    settings: UpdateSettings = field(default_factory=UpdateSettings)
    watch: UpdateWatch = field(default_factory=UpdateWatch)

    def build(self, source: ReferenceSource, *, describe_again: bool = False) -> Update:
        """Make the index anew of everything in a source.

        Args:
            source: the reference database.
            describe_again: describe all of it, also photos whose content the current version has described just so.
        """
        return self._update(lambda: plan_full(list_source(source, self.work, self.watch)), describe_again)

    def append(self, source: ReferenceSource, *, describe_again: bool = False) -> Update:
        """Add the references of a source that the index does not have; see `plan_append`."""

        def plan() -> UpdatePlan:
            base = self._base()
            return plan_append(base, list_source(source, self.work, self.watch), describe_again=describe_again)

        return self._update(plan, describe_again)

    def remove(self, reference_ids: Sequence[str] | None) -> Update:
        """Drop some references, or with None those whose photos are gone; see `plan_remove`."""
        return self._update(lambda: plan_remove(self._base(), reference_ids, self.watch))

    def _base(self) -> PlaceIndex:
        base = PlaceIndex.open(self.indexes / check_index_name(self.name))
        base.check_bundle(self.describer.bundle)
        return base

    def _update(self, make_plan: Callable[[], UpdatePlan], describe_again: bool = False) -> Update:
        with (
            draft_version(self.indexes, self.name, activate=self.settings.activate) as draft,
            self._work_folder(draft) as work,
        ):
            self.watch.reached("draft opened")
            # The version before: of it come the counts of what was added and removed, and what a rollback returns to.
            before = _current(draft.index_folder)
            with storage_errors(work):
                plan = make_plan()
                if plan.base is not None and plan.changes_nothing:
                    return _unchanged(plan.base, plan.skipped, 0)
                base = self._described_before(plan, draft)
                features = self._features(plan, base, describe_again=describe_again)
                parts = self._describe(plan, work, None if describe_again else base, features)
            if plan.base is not None and len(plan.kept) == plan.base.count and not len(parts.rows):
                return _unchanged(plan.base, plan.skipped, parts.unreadable)
            update = self._write(draft, plan, parts, before, features)
            if plan.base is not None:
                _check_still_current(draft, before)
            self._publish(draft, update)
        return update

    @contextlib.contextmanager
    def _work_folder(self, draft: Draft) -> Iterator[Path]:
        if self.work is not None:
            yield self.work
            return
        folder = draft.index_folder / WORK_NAME
        with work_for_itself(folder):
            yield folder

    def _described_before(self, plan: UpdatePlan, draft: Draft) -> PlaceIndex | None:
        """The version that descriptors of unchanged photos may be taken over from, with its files checked."""
        if plan.base is not None:
            return plan.base
        try:
            base = PlaceIndex.open(draft.index_folder, memory_map=True)
            verify_files(base.folder, base.manifest.files, error_type=PlaceIndexError)
        except (IndexNotFoundError, PlaceIndexError):  # making the index anew is the remedy of that
            return None
        return base

    def _features(self, plan: UpdatePlan, before: PlaceIndex | None, *, describe_again: bool) -> FeaturesPlan | None:
        """How local features are made, or None for none. What has some keeps them, unless it is told otherwise."""
        stored = before.manifest.local_features if before is not None else None
        wanted = self.settings.design.local_features
        if plan.base is not None or wanted is None:
            wanted = stored is not None
        if not wanted:
            return None
        opencv_module()  # before anything is described, where it is missing
        settings = stored.settings if stored is not None and plan.base is not None else FeatureSettings()
        return FeaturesPlan(settings, None if describe_again else before, self.settings.describe.limits)

    def _describe(
        self, plan: UpdatePlan, work: Path, before: PlaceIndex | None, features: FeaturesPlan | None
    ) -> DescribedParts:
        total = plan.to_describe.num_rows
        self.watch.planned(total)
        settings = self.settings
        known = self._known(plan, before) if before is not None and total else None
        how = PartSettings(
            settings.describe, work, plan.photo_root, settings.part_photos, known=known, engine=settings.engine
        )
        parts = plan_parts(plan.to_describe, self.describer, how)
        dim = self.describer.bundle.descriptor_dim
        stored = dim * _STORED_BYTES[_storage(plan, settings.design)] + _BYTES_OF_A_ROW
        stored += features.settings.max_bytes if features is not None else 0
        _check_room(work, parts.photos_to_do * dim * 4, self.indexes, (len(plan.kept) + total) * stored)
        self.watch.reached("planned")
        described = describe_in_parts(parts, self.describer, how, self.watch, before)
        self.watch.reached("described")
        return described

    def _known(self, plan: UpdatePlan, before: PlaceIndex) -> KnownContent | None:
        whitened = before.whitening is not None if plan.base is not None else self.settings.design.whiten > 0
        storage = _storage(plan, self.settings.design)
        return known_content(before, self.describer, self.settings.describe.limits, storage, whitened=whitened)

    def _write(
        self,
        draft: Draft,
        plan: UpdatePlan,
        parts: DescribedParts,
        before: str | None,
        features: FeaturesPlan | None,
    ) -> Update:
        """Write the files of the draft, and have them pass the gate."""
        table = _new_table(plan, parts)
        if not table.num_rows:
            raise ReferenceDataError(
                "there is no photo to index",
                where=plan.source.spec,
                remedy="Look at the source with: sightfix inspect SPEC",
            )

        def described(rows: NDArray[np.int64]) -> Descriptors:
            self.watch.go_on()
            return parts.take(rows)

        def tell(done: int, without: Sequence[LeftOut]) -> None:
            self.watch.go_on()
            self.watch.local_features(done, table.num_rows, without)

        content = VersionContent(
            name=self.name,
            version=draft.version,
            bundle=self.describer.bundle,
            source=plan.source,
            table=table,
            described=described,
            base=plan.base,
            kept=plan.kept,
            describing=self._describing(plan, parts),
            local_features=None if features is None else replace(features, tell=tell),
            calibration_photos=self._calibration_photos(draft, before),
        )
        try:
            written = write_version(draft.folder, content, self.settings.design, self.watch.reached)
            gate = check_version(draft.folder, self.describer, self._gate(table.num_rows), self.watch.go_on)
        except PlaceIndexError:
            if (draft.folder / MANIFEST_NAME).exists():
                # The version is whole, and does not find its own photos: going on from these parts would repeat that.
                parts.discard()
            raise
        self.watch.reached("gate passed")
        return _summary(draft, plan, parts, before, table, gate, written.choices)

    def _calibration_photos(self, draft: Draft, before: str | None) -> OutsidePhotos | None:
        """What the version before was given to be calibrated on, even where its other files are damaged."""
        if before is None:
            return None
        folder = draft.index_folder / VERSIONS_NAME / before
        return calibration_photos_of(folder, self.describer.bundle.fingerprint)

    def _gate(self, rows: int) -> GateSettings:
        gate = self.settings.gate
        return replace(gate, canaries=max(_LEAST_CANARIES, min(gate.canaries, rows // self.settings.canary_share)))

    def _describing(self, plan: UpdatePlan, parts: DescribedParts) -> DescribingRecord | None:
        """How all references of the new version were described; None where not all were described alike."""
        now = describing_record(self.describer, self.settings.describe.limits)
        if plan.base is None:
            return now
        before = plan.base.manifest.describing
        return before if before == now or not len(parts.rows) else None

    def _publish(self, draft: Draft, update: Update) -> None:
        self.watch.publishing(update)
        draft.name_version()
        self.watch.reached("version named")
        if draft.activate:
            draft.make_current()
            self.watch.reached("current")
            problem = remove_old_versions(draft.index_folder, self.settings.keep)
            if problem is not None:
                self.watch.not_pruned(problem)


def _current(index_folder: Path) -> str | None:
    """The current version; None also where CURRENT names none that exists, for making the index anew repairs that."""
    try:
        return current_version(index_folder)
    except IndexNotFoundError:
        return None


def _check_still_current(draft: Draft, before: str | None) -> None:
    if _current(draft.index_folder) != before:
        raise PlaceIndexError(
            f"another version became current while this one was made from {before}; nothing was published",
            where=str(draft.index_folder / CURRENT_NAME),
            remedy="Start the job again, to work from the version that is current now",
            code="version_conflict",
        )


def _storage(plan: UpdatePlan, design: IndexDesign) -> Storage:
    """What was stored once stays stored so: another rounding would change it."""
    return plan.base.manifest.storage if plan.base is not None else design.storage


def _check_room(work: Path, work_bytes: int, indexes: Path, index_bytes: int) -> None:
    """Raise StorageError where parts and version will not fit, be it on one disk or on two."""
    if work.stat().st_dev == indexes.stat().st_dev:
        check_free_space(indexes, work_bytes + index_bytes)
    else:
        check_free_space(work, work_bytes)
        check_free_space(indexes, index_bytes)


def _new_table(plan: UpdatePlan, parts: DescribedParts) -> pa.Table:
    """The rows that were kept, then the rows that have a descriptor now."""
    described = paths_below(plan.to_describe.take(pa.array(parts.rows)), Path(plan.source.root))
    place = REFERENCE_SCHEMA.get_field_index("content_sha256")
    described = described.set_column(place, REFERENCE_SCHEMA.field(place), parts.content_sha256)
    if plan.base is None:
        return described
    return pa.concat_tables([read_rows(plan.base).take(pa.array(plan.kept)), described])


def _summary(
    draft: Draft,
    plan: UpdatePlan,
    parts: DescribedParts,
    before: str | None,
    table: pa.Table,
    gate: GateReport,
    choices: Sequence[Choice],
) -> Update:
    old_ids = _ids_of(draft.index_folder, before)
    ids = table["id"].slice(len(plan.kept)).to_pylist()
    replaced = sum(name in old_ids for name in ids)
    return Update(
        version=draft.version,
        base=before,
        count=table.num_rows,
        added=len(ids) - replaced,
        replaced=replaced,
        kept=len(plan.kept),
        removed=len(old_ids) - len(plan.kept) - replaced,
        taken_over=int((parts.base_rows >= 0).sum()),
        unreadable=parts.unreadable,
        skipped=plan.skipped,
        gate=gate,
        activated=draft.activate,
        choices=choices,
    )


def _ids_of(index_folder: Path, version: str | None) -> set[str]:
    """The ids of a version; none where its table is damaged, for making the index anew is the remedy of that."""
    if version is None:
        return set()
    try:
        table = pq.read_table(index_folder / VERSIONS_NAME / version / REFERENCES_NAME, columns=["id"])
    except (pa.ArrowException, OSError):
        return set()
    return set(table["id"].to_pylist())


def _unchanged(base: PlaceIndex, skipped: int, unreadable: int) -> Update:
    """What is told when the current version is the result already."""
    return Update(
        version=base.version,
        base=base.version,
        count=base.count,
        added=0,
        replaced=0,
        kept=base.count,
        removed=0,
        taken_over=0,
        unreadable=unreadable,
        skipped=skipped,
        gate=None,
        activated=True,
    )


# Build a place index: describe the references, order them along a spatial curve, check, publish.
#
# A build that is killed or fails goes on, when it is called again, with what was described already.

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
