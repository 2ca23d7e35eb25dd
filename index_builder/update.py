"""Update a place index: make a new version of everything, with references appended, or with some removed.

`build_index`, `append_references` and `remove_references` do the same in one order: plan what becomes of the rows,
describe the photos that need it, write a version, check it, publish it. The work survives a crash: what was listed and
described lies in a work folder, and the same call goes on from there.
"""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from index_builder.adapting import AdaptedBundle, AdaptMode, adapt_to_photos, bundle_and_whether_to_adapt
from index_builder.calibration.queries import OutsidePhotos, calibration_photos_of
from index_builder.describing import DescribeSettings, ReusableDescriptors, describing_record
from index_builder.index_design import STORED_BYTES, IndexDesign
from index_builder.parts import (
    DEFAULT_PART_PHOTOS,
    DescribedParts,
    PartEngine,
    PartSettings,
    describe_in_parts,
    describe_locally,
    plan_parts,
    resumable_work_folder,
)
from index_builder.publish import (
    DEFAULT_KEEP,
    WORK_NAME,
    VersionDraft,
    bytes_not_held,
    check_free_space,
    draft_version,
    remove_old_versions,
)
from index_builder.quality import QualitySettings, check_photos
from index_builder.update_observer import Update, UpdateObserver
from index_builder.update_plan import UpdatePlan, list_source, paths_below, plan_all, plan_append, plan_remove
from index_builder.version_writer import FeaturesPlan, VersionContent, write_version
from retrieval.artefact import MANIFEST_NAME, storage_errors, verify_files
from retrieval.bundle import Bundle, open_bundle
from retrieval.describer import Describer, Descriptors
from retrieval.errors import BundleError, IndexNotFoundError, PlaceIndexError, ReferenceDataError, SightfixError
from retrieval.images import LeftOut
from retrieval.index.folder import (
    CURRENT_NAME,
    VERSIONS_NAME,
    check_index_name,
    current_version,
    current_version_or_none,
    published_versions,
)
from retrieval.index.manifest import DescribingRecord, PlaceIndexManifest
from retrieval.index.place_index import REFERENCES_NAME, PlaceIndex, held_bundle
from retrieval.index.reference_table import REFERENCE_SCHEMA, read_references
from retrieval.index.vectors.exact import Storage
from retrieval.references.reference import ReferenceSource
from retrieval.verification.local_features import FeatureSettings, opencv_module

EngineName = Literal["local", "ray"]
ENGINES: Final[tuple[EngineName, ...]] = ("local", "ray")

# The quality check describes photos again: of a small index, few, so that it is made soon.
_QUICK_CHECK: Final = QualitySettings(one_in=25)

_BYTES_OF_A_ROW: Final = 512


@dataclass(frozen=True, slots=True)
class UpdateSettings:
    """How an index is updated.

    Attributes:
        design: of an index made anew; what is appended to or removed from stays as it was designed.
        describe: how references are described.
        describe_again: describe all photos, also those whose content the current version has described just so.
        adapt: whether the bundle of an index made anew is adapted to its photos; see `AdaptMode`.
        dim: numbers that an adapted descriptor shall have; None for the usual ones, or those of the version before.
        part_photos: photos described between two points from which a killed update goes on.
        engine: what describes: this process, or a Ray cluster.
        quality: what the new version must reach.
        activate: whether it becomes current; else it is published beside the current one, to be activated by hand.
        keep: how many versions remain after one became current, that one included.
    """

    design: IndexDesign = field(default_factory=IndexDesign)
    describe: DescribeSettings = field(default_factory=DescribeSettings)
    describe_again: bool = False
    adapt: AdaptMode = "never"
    dim: int | None = None
    part_photos: int = DEFAULT_PART_PHOTOS
    engine: EngineName = "local"
    quality: QualitySettings = _QUICK_CHECK
    activate: bool = True
    keep: int = DEFAULT_KEEP


def bundle_for_build(indexes: Path, name: str, named: Path | None = None, *, of_a_first: Path | None = None) -> Bundle:
    """The bundle that an index is made with, from all of its photos.

    Damage to an index does not change its model: where that of the version before cannot be known, it must be named.

    Args:
        indexes: the folder of all indexes.
        name: of this index.
        named: as the user names it, see `bundle_folder`: it takes the place of the version's before.
        of_a_first: for the first version of an index, or where the version before holds none; None is the shipped one.

    Returns:
        The named one, or the one that the current version holds, or that of a first.

    Raises:
        BundleError: it cannot be opened, or not be known.
    """
    if named is not None:
        return open_bundle(named)
    folder = indexes / check_index_name(name)
    if not (folder / CURRENT_NAME).exists() or not published_versions(folder):
        return open_bundle(of_a_first)
    try:
        before = folder / VERSIONS_NAME / current_version(folder)
    except IndexNotFoundError as damage:
        raise _must_be_named(damage) from damage
    try:
        return held_bundle(before) or open_bundle(of_a_first)
    except BundleError as damage:
        same = open_bundle(of_a_first)
        if _was_described_with(before, same):
            return same
        raise _must_be_named(damage) from damage


def _was_described_with(version_folder: Path, bundle: Bundle) -> bool:
    """Whether a version says so."""
    try:
        return PlaceIndexManifest.read(version_folder, PlaceIndexError).bundle.fingerprint == bundle.fingerprint
    except PlaceIndexError:
        return False


def _must_be_named(damage: SightfixError) -> BundleError:
    """The error where the bundle of the version before cannot be had."""
    remedy = "Name the bundle to describe with: --bundle FOLDER, or default"
    return BundleError(damage.what, where=damage.where, remedy=remedy)


def build_index(
    source: ReferenceSource,
    describer: Describer,
    indexes: Path,
    name: str,
    settings: UpdateSettings | None = None,
    *,
    work: Path | None = None,
    observer: UpdateObserver | None = None,
) -> Update:
    """Describe a reference database and publish it as the new version of an index.

    Args:
        source: the reference database.
        describer: of the bundle that the index is made with, see `bundle_for_build`; the version will hold it.
        indexes: the folder of all indexes.
        name: of this index.
        settings: how.
        work: a folder of this update alone, which its owner removes; what an earlier run left there is used, the
            listing of the source included. None for a hidden one below the index, which is removed when all is done;
            then the source is listed each time, and those parts are used that still fit: bundle, precision, limits,
            rows, and the size and time of each photo's file decide.
        observer: called at every step; what it raises ends the update.

    Raises:
        ReferenceDataError: a source that cannot be read, no rows, a row without a position, ids that clash, too many
            unreadable photos.
        StorageError: the disk is full or refuses, or another process is building this index.
        PlaceIndexError: the new version does not pass the quality check. Nothing is published after any of these.
        MissingExtraError: the engine is not installed, or OpenCV where local features are wanted.
    """
    updater = _Updater(describer, indexes, name, settings or UpdateSettings(), work, observer or UpdateObserver())
    return updater.run(lambda: plan_all(list_source(source, work, updater.observer)))


def append_references(
    source: ReferenceSource,
    describer: Describer,
    indexes: Path,
    name: str,
    settings: UpdateSettings | None = None,
    *,
    work: Path | None = None,
    observer: UpdateObserver | None = None,
) -> Update:
    """Add the references of a source that the index does not have; see `plan_append` and, for the rest, `build_index`.

    Raises:
        IndexNotFoundError: there is nothing to append to.
        ModelIndexMismatchError: another bundle than the current version's.
        PlaceIndexError: also where another version became current meanwhile (``version_conflict``).
    """
    updater = _Updater(describer, indexes, name, settings or UpdateSettings(), work, observer or UpdateObserver())

    def plan() -> UpdatePlan:
        base = updater.current_index()
        listing = list_source(source, work, updater.observer)
        return plan_append(base, listing, describe_again=updater.settings.describe_again)

    return updater.run(plan)


def remove_references(
    reference_ids: Sequence[str] | None,
    describer: Describer,
    indexes: Path,
    name: str,
    settings: UpdateSettings | None = None,
    *,
    work: Path | None = None,
    observer: UpdateObserver | None = None,
) -> Update:
    """Remove some references, or with None those whose photos are gone; see `plan_remove` and `append_references`."""
    updater = _Updater(describer, indexes, name, settings or UpdateSettings(), work, observer or UpdateObserver())
    return updater.run(lambda: plan_remove(updater.current_index(), reference_ids, updater.observer))


@dataclass(frozen=True)
class _Updater:
    """One update; the attributes are the arguments of `build_index`."""

    describer: Describer
    indexes: Path
    name: str
    settings: UpdateSettings
    work: Path | None
    observer: UpdateObserver

    def current_index(self) -> PlaceIndex:
        """What is appended to or removed from."""
        base = PlaceIndex.open(self.indexes / check_index_name(self.name))
        base.check_bundle(self.describer.bundle)
        return base

    def run(self, make_plan: Callable[[], UpdatePlan]) -> Update:
        """Plan, describe, write, check and publish."""
        settings = self.settings
        with (
            draft_version(self.indexes, self.name, activate=settings.activate) as draft,
            self._work(draft) as work,
            contextlib.ExitStack() as own,
        ):
            self.observer.reached("draft opened")
            # The version before: of it come the counts of what was added and removed, and what a rollback returns to.
            # None also where CURRENT names none that exists: making the index anew repairs that.
            before = current_version_or_none(draft.index_folder)
            with storage_errors(work):
                plan = make_plan()
                if plan.base is not None and plan.changes_nothing:
                    return _unchanged(plan.base, plan.skipped, ())
                base = self._described_before(plan, draft)
                features = self._features(plan, base)
                updater, adapted = self._adapted(plan, work, base)
                if updater.describer is not self.describer:  # the caller closes his own
                    own.callback(updater.describer.close)
                parts = updater._describe(plan, work, None if settings.describe_again else base, features, adapted)
            if plan.base is not None and len(plan.kept) == plan.base.count and not len(parts.rows):
                return _unchanged(plan.base, plan.skipped, parts.unreadable)
            update = updater._write(draft, plan, parts, before, features)
            if adapted is not None:  # what was described while adapting is no descriptor of the version before
                update = replace(update, taken_over=0)
            if plan.base is not None:
                _check_still_current(draft, before)
            self.observer.publishing(update)
            draft.name_version()
            self.observer.reached("version named")
            if draft.activate:
                draft.make_current()
                self.observer.reached("current")
                problem = remove_old_versions(draft.index_folder, settings.keep)
                if problem is not None:
                    self.observer.not_pruned(problem)
        return update

    def _work(self, draft: VersionDraft) -> contextlib.AbstractContextManager[Path]:
        if self.work is not None:
            return contextlib.nullcontext(self.work)
        return resumable_work_folder(draft.index_folder / WORK_NAME)

    def _described_before(self, plan: UpdatePlan, draft: VersionDraft) -> PlaceIndex | None:
        """The version that descriptors of unchanged photos may be taken over from, with its files checked."""
        if plan.base is not None:
            return plan.base
        try:
            base = PlaceIndex.open(draft.index_folder, memory_map=True)
            verify_files(base.folder, base.manifest.files, error_type=PlaceIndexError)
        except (IndexNotFoundError, PlaceIndexError):  # making the index anew is the remedy of that
            return None
        return base

    def _adapted(
        self, plan: UpdatePlan, work: Path, base: PlaceIndex | None
    ) -> tuple["_Updater", AdaptedBundle | None]:
        """This update with the bundle adapted to the photos, and what it was fitted to where that happens now."""
        if plan.base is not None:
            return self, None
        settings = self.settings
        given = self.describer.bundle
        bundle, adapt = bundle_and_whether_to_adapt(given, base, settings.adapt, settings.dim)
        adapted = None
        if adapt:
            limits = settings.describe.limits
            adapted = adapt_to_photos(
                bundle,
                plan.to_describe,
                work,
                self.name,
                self.observer,
                limits,
                asked_for=settings.adapt == "again" or settings.dim is not None,
                precision=self.describer.precision,
                dim=settings.dim,
            )
            bundle = bundle if adapted is None else adapted.bundle
        self.observer.reached("adapted")
        if bundle.fingerprint == given.fingerprint:
            return self, adapted
        return replace(self, describer=self.describer.with_bundle(bundle)), adapted

    def _features(self, plan: UpdatePlan, before: PlaceIndex | None) -> FeaturesPlan | None:
        """How local features are made, or None for none; what the design leaves open stays as it was before."""
        stored = before.manifest.local_features if before is not None else None
        wanted = self.settings.design.local_features
        if plan.base is not None or wanted is None:
            wanted = stored is not None
        if not wanted:
            return None
        opencv_module()  # before anything is described, where it is missing
        settings = stored.settings if stored is not None and plan.base is not None else FeatureSettings()
        return FeaturesPlan(settings, None if self.settings.describe_again else before, self.settings.describe.limits)

    def _describe(
        self,
        plan: UpdatePlan,
        work: Path,
        before: PlaceIndex | None,
        features: FeaturesPlan | None,
        adapted: AdaptedBundle | None,
    ) -> DescribedParts:
        settings, total = self.settings, plan.to_describe.num_rows
        self.observer.planned(total)
        storage = _storage(plan, settings.design)
        stored, source = None, adapted or before
        if adapted is not None:
            stored = adapted.reusable()
        elif before is not None and total:
            limits = settings.describe.limits
            stored = ReusableDescriptors.of(before, self.describer, limits, storage)
        how = PartSettings(settings.describe, work, plan.photo_root, settings.part_photos, stored)
        parts = plan_parts(plan.to_describe, self.describer, how)
        dim = self.describer.bundle.descriptor_dim
        row_bytes = dim * STORED_BYTES[storage] + _BYTES_OF_A_ROW
        row_bytes += features.settings.max_bytes if features is not None else 0
        held_bytes = bytes_not_held(self.indexes / self.name / VERSIONS_NAME, self.describer.bundle)
        index_bytes = (len(plan.kept) + total) * row_bytes + held_bytes
        _check_room(work, parts.photos_to_do * dim * 4, self.indexes, index_bytes)
        self.observer.reached("planned")
        described = describe_in_parts(parts, self.describer, how, self.observer, _engine(settings.engine), source)
        self.observer.reached("described")
        return described

    def _write(
        self,
        draft: VersionDraft,
        plan: UpdatePlan,
        parts: DescribedParts,
        before: str | None,
        features: FeaturesPlan | None,
    ) -> Update:
        """Write the files of the draft and check their quality."""
        table = _new_table(plan, parts)
        if not table.num_rows:
            raise ReferenceDataError(
                "there is no photo to index",
                where=plan.source.spec,
                remedy="Look at the source with: sightfix inspect SPEC",
            )
        without_features: list[LeftOut] = []

        def described(rows: NDArray[np.int64]) -> Descriptors:
            self.observer.check_stopped()
            return parts.take(rows)

        def features_done(done: int, without: Sequence[LeftOut]) -> None:
            without_features.extend(without)
            self.observer.check_stopped()
            self.observer.local_features(done, table.num_rows, without)

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
            local_features=None if features is None else replace(features, on_progress=features_done),
            calibration_photos=self._calibration_photos(draft, before),
        )
        try:
            written = write_version(draft.folder, content, self.settings.design, self.observer.reached)
            quality = check_photos(
                written.index,
                self.describer,
                self.settings.quality,
                self.settings.describe.limits,
                self.observer.check_stopped,
            )
        except PlaceIndexError:
            if (draft.folder / MANIFEST_NAME).exists():
                # The version is whole, and does not find its own photos: going on from these parts would repeat that.
                parts.discard()
            raise
        self.observer.reached("quality checked")
        old_ids = _ids_of(draft.index_folder, before)
        new_ids = table["id"].slice(len(plan.kept)).to_pylist()
        replaced = sum(name in old_ids for name in new_ids)
        return Update(
            folder=draft.published_folder,
            manifest=written.manifest,
            base=before,
            added=len(new_ids) - replaced,
            replaced=replaced,
            kept=len(plan.kept),
            removed=len(old_ids) - len(plan.kept) - replaced,
            taken_over=int((parts.base_rows >= 0).sum()),
            unreadable=parts.unreadable,
            without_features=without_features,
            skipped=plan.skipped,
            quality=quality,
            activated=draft.activate,
            choices=written.choices,
        )

    def _calibration_photos(self, draft: VersionDraft, before: str | None) -> OutsidePhotos | None:
        """What the version before was given to be calibrated on, even where its other files are damaged."""
        if before is None:
            return None
        folder = draft.index_folder / VERSIONS_NAME / before
        return calibration_photos_of(folder, self.describer.bundle.fingerprint)

    def _describing(self, plan: UpdatePlan, parts: DescribedParts) -> DescribingRecord | None:
        """How all references of the new version were described; None where not all were described alike."""
        now = describing_record(self.describer, self.settings.describe.limits)
        if plan.base is None:
            return now
        before = plan.base.manifest.describing
        return before if before == now or not len(parts.rows) else None


def _engine(name: EngineName) -> PartEngine:
    if name == "ray":
        from index_builder.ray_describing import describe_on_ray

        return describe_on_ray
    return describe_locally


def _check_still_current(draft: VersionDraft, before: str | None) -> None:
    if current_version_or_none(draft.index_folder) != before:
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
    """The rows that were kept, then the rows that have a descriptor now, their paths below the root of the index."""
    described = paths_below(plan.to_describe.take(pa.array(parts.rows)), Path(plan.source.root))
    place = REFERENCE_SCHEMA.get_field_index("content_sha256")
    described = described.set_column(place, REFERENCE_SCHEMA.field(place), parts.content_sha256)
    if plan.base is None:
        return described
    kept = read_references(plan.base.folder / REFERENCES_NAME).take(pa.array(plan.kept))
    return pa.concat_tables([kept, described])


def _ids_of(index_folder: Path, version: str | None) -> set[str]:
    """The ids of a version; none where its table is damaged, for making the index anew is the remedy of that."""
    if version is None:
        return set()
    try:
        table = pq.read_table(index_folder / VERSIONS_NAME / version / REFERENCES_NAME, columns=["id"])
    except (pa.ArrowException, OSError):
        return set()
    return set(table["id"].to_pylist())


def _unchanged(base: PlaceIndex, skipped: int, unreadable: Sequence[LeftOut]) -> Update:
    """The update where the current version is the result already."""
    return Update(
        folder=base.folder,
        manifest=base.manifest,
        base=base.version,
        kept=base.count,
        unreadable=unreadable,
        skipped=skipped,
    )
