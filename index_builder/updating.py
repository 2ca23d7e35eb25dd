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

from index_builder.described_parts import DEFAULT_PART_PHOTOS, DescribedParts, work_for_itself
from index_builder.describing import DescribeSettings
from index_builder.gate import GateReport, GateSettings, check_version
from index_builder.known_content import KnownContent, describing_record, known_content
from index_builder.local_features import FeaturesPlan
from index_builder.outside_photos import OutsidePhotos, calibration_photos_of
from index_builder.part_describing import Engine, PartSettings, describe_in_parts, plan_parts
from index_builder.publishing import (
    DEFAULT_KEEP,
    WORK_NAME,
    Draft,
    check_free_space,
    draft_version,
    remove_old_versions,
)
from index_builder.update_plan import (
    UpdatePlan,
    list_source,
    paths_below,
    plan_append,
    plan_full,
    plan_remove,
    read_rows,
)
from index_builder.update_watch import LeftOut, Update, UpdateWatch
from index_builder.vectors.choosing import Choice
from index_builder.vectors.design import IndexDesign
from index_builder.version_writer import VersionContent, write_version
from retrieval.artefact import MANIFEST_NAME, storage_errors, verify_files
from retrieval.describer import Describer, Descriptors
from retrieval.errors import IndexNotFoundError, PlaceIndexError, ReferenceDataError
from retrieval.index_folder import CURRENT_NAME, VERSIONS_NAME, check_index_name, current_version
from retrieval.place_index import REFERENCES_NAME, PlaceIndex
from retrieval.place_index_manifest import DescribingRecord
from retrieval.reference_table import REFERENCE_SCHEMA
from retrieval.references.reference import ReferenceSource
from retrieval.reranking.local_features import FeatureSettings
from retrieval.reranking.opencv_library import opencv_module
from retrieval.vectors.exact import Storage

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
