"""Update a place index: a new version made anew, with references appended, or with some removed.

The work survives a crash: what was listed and described lies in a work folder, and the same call goes on from there.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from index_builder.described_parts import DEFAULT_PART_PHOTOS, DescribedParts, describe_in_parts
from index_builder.describing import DescribeSettings
from index_builder.gate import GateReport, GateSettings, check_version
from index_builder.publishing import DEFAULT_KEEP, Draft, check_free_space, draft_version, prune
from index_builder.reference_rows import bounds_of, spatial_order
from index_builder.update_plan import (
    UpdatePlan,
    list_source,
    paths_below,
    plan_append,
    plan_full,
    plan_remove,
    read_rows,
)
from index_builder.update_watch import Update, UpdateWatch
from index_builder.version_files import check_answers, write_references, write_vectors
from retrieval.artefact import record_files, storage_errors
from retrieval.describer import Describer, Descriptors
from retrieval.errors import IndexNotFoundError, PlaceIndexError, ReferenceDataError
from retrieval.exact_vectors import Storage
from retrieval.index_folder import CURRENT_NAME, VERSIONS_NAME, check_index_name, current_version
from retrieval.place_index import REFERENCES_NAME, VECTORS_NAME, BundleIdentity, PlaceIndex, PlaceIndexManifest
from retrieval.references.reference import ReferenceSource

_BYTES_OF_A_ROW: Final = 512


@dataclass(frozen=True, slots=True)
class UpdateSettings:
    """How an index is updated.

    Attributes:
        describe: how references are described.
        part_photos: photos described between two points from which a killed update goes on.
        gate: what the new version must reach.
        activate: whether it becomes current; else it is published beside the current one, to be activated by hand.
        keep: how many versions remain after one became current.
    """

    describe: DescribeSettings = field(default_factory=DescribeSettings)
    part_photos: int = DEFAULT_PART_PHOTOS
    gate: GateSettings = field(default_factory=GateSettings)
    activate: bool = True
    keep: int = DEFAULT_KEEP


@dataclass(frozen=True)
class IndexUpdater:
    """Updates one index. All three calls raise the same errors, and publish nothing when they do.

    Args:
        describer: of the bundle that the index is made with.
        indexes: the folder of all indexes.
        name: of this index.
        work: a folder of this update alone, kept until it is finished; what an earlier run left there is used.
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
    work: Path
    settings: UpdateSettings = field(default_factory=UpdateSettings)
    watch: UpdateWatch = field(default_factory=UpdateWatch)

    def build(self, source: ReferenceSource, storage: Storage = "fp16") -> Update:
        """Describe everything in a source, and publish that alone."""
        return self._update(lambda: plan_full(list_source(source, self.work, self.watch)), storage)

    def append(self, source: ReferenceSource, *, describe_again: bool = False) -> Update:
        """Add the references of a source that the index does not have; see `plan_append`."""

        def plan() -> UpdatePlan:
            base = self._base()
            return plan_append(base, list_source(source, self.work, self.watch), describe_again=describe_again)

        return self._update(plan)

    def remove(self, reference_ids: Sequence[str] | None) -> Update:
        """Drop some references, or with None those whose photos are gone; see `plan_remove`."""
        return self._update(lambda: plan_remove(self._base(), reference_ids, self.watch))

    def _base(self) -> PlaceIndex:
        base = PlaceIndex.open(self.indexes / check_index_name(self.name))
        base.check_bundle(self.describer.bundle)
        return base

    def _update(self, make_plan: Callable[[], UpdatePlan], storage: Storage | None = None) -> Update:
        with draft_version(self.indexes, self.name, activate=self.settings.activate) as draft:
            self.watch.reached("draft opened")
            # The version before: of it come the counts of what was added and removed, and what a rollback returns to.
            before = _current(draft.index_folder)
            with storage_errors(self.work):
                plan = make_plan()
                if plan.base is not None and plan.changes_nothing:
                    return _unchanged(plan.base, plan.skipped, 0)
                parts = self._describe(plan, storage)
            if plan.base is not None and len(plan.kept) == plan.base.count and not len(parts.rows):
                return _unchanged(plan.base, plan.skipped, parts.unreadable)
            update = self._write(draft, plan, parts, storage, before)
            if plan.base is not None:
                _check_still_current(draft, before)
            self._publish(draft, update)
        return update

    def _describe(self, plan: UpdatePlan, storage: Storage | None) -> DescribedParts:
        total = plan.to_describe.num_rows
        self.watch.planned(total)
        dim = self.describer.bundle.descriptor_dim
        stored = dim * (4 if _storage(plan, storage) == "fp32" else 2) + _BYTES_OF_A_ROW
        check_free_space(self.work, total * dim * 4)
        check_free_space(self.indexes, (len(plan.kept) + total) * stored)
        self.watch.reached("planned")
        settings = self.settings
        parts = describe_in_parts(
            plan.to_describe,
            plan.photo_root,
            self.describer,
            self.work,
            settings.describe,
            self.watch,
            settings.part_photos,
        )
        self.watch.reached("described")
        return parts

    def _write(
        self, draft: Draft, plan: UpdatePlan, parts: DescribedParts, storage: Storage | None, before: str | None
    ) -> Update:
        """Write the files of the draft, and have them pass the gate."""
        dim = self.describer.bundle.descriptor_dim
        table = _new_table(plan, parts)
        if not table.num_rows:
            raise ReferenceDataError(
                "there is no photo to index", where=plan.source.spec, remedy="Look at the photos that were left out"
            )
        order = spatial_order(table)
        write_vectors(draft.folder, order, dim, _storage(plan, storage), _taker(plan, parts, dim, self.watch))
        self.watch.reached("vectors written")
        write_references(draft.folder, order, table)
        self.watch.reached("references written")
        bundle = self.describer.bundle
        PlaceIndexManifest(
            name=self.name,
            version=draft.version,
            bundle=BundleIdentity(name=bundle.name, fingerprint=bundle.fingerprint),
            descriptor_dim=dim,
            storage=_storage(plan, storage),
            count=len(order),
            bounds=bounds_of(table),
            source=plan.source,
            files=record_files(draft.folder, [VECTORS_NAME, REFERENCES_NAME]),
        ).write(draft.folder)
        self.watch.reached("manifest written")
        check_answers(draft.folder)
        gate = check_version(draft.folder, self.describer, self.settings.gate, self.watch.go_on)
        self.watch.reached("gate passed")
        return _summary(draft, plan, parts, before, table, gate)

    def _publish(self, draft: Draft, update: Update) -> None:
        self.watch.publishing(update)
        draft.name_version()
        self.watch.reached("version named")
        if draft.activate:
            draft.make_current()
            self.watch.reached("current")
            prune(draft.index_folder, self.settings.keep)


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


def _storage(plan: UpdatePlan, storage: Storage | None) -> Storage:
    """What was stored once stays stored so: another rounding would change it."""
    return plan.base.manifest.storage if plan.base is not None else storage or "fp16"


def _new_table(plan: UpdatePlan, parts: DescribedParts) -> pa.Table:
    """The rows that were kept, then the rows that were described."""
    described = paths_below(plan.to_describe.take(pa.array(parts.rows)), Path(plan.source.root))
    if plan.base is None:
        return described
    return pa.concat_tables([read_rows(plan.base).take(pa.array(plan.kept)), described])


def _taker(
    plan: UpdatePlan, parts: DescribedParts, dim: int, watch: UpdateWatch
) -> Callable[[NDArray[np.int64]], Descriptors]:
    """Gives the descriptors of rows of `_new_table`."""

    def take(rows: NDArray[np.int64]) -> Descriptors:
        watch.go_on()
        out = np.empty((len(rows), dim), np.float32)
        old = rows < len(plan.kept)
        if plan.base is not None and old.any():
            out[old] = plan.base.descriptors(plan.kept[rows[old]])
        out[~old] = parts.take(rows[~old] - len(plan.kept))
        return out

    return take


def _summary(
    draft: Draft, plan: UpdatePlan, parts: DescribedParts, before: str | None, table: pa.Table, gate: GateReport
) -> Update:
    old_ids = _ids_of(draft.index_folder, before)
    described = table["id"].slice(len(plan.kept)).to_pylist()
    replaced = sum(name in old_ids for name in described)
    return Update(
        version=draft.version,
        base=before,
        count=table.num_rows,
        added=len(described) - replaced,
        replaced=replaced,
        kept=len(plan.kept),
        removed=len(old_ids) - len(plan.kept) - replaced,
        unreadable=parts.unreadable,
        skipped=plan.skipped,
        gate=gate,
        activated=draft.activate,
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
        unreadable=unreadable,
        skipped=skipped,
        gate=None,
        activated=True,
    )
