"""Build a place index: describe the references, order them along a spatial curve, check, publish."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

import numpy as np

from index_builder.describing import DescribeSettings, UnreadablePhoto, describe_in_batches
from index_builder.publishing import DEFAULT_KEEP, check_free_space, draft_version, prune
from index_builder.reference_rows import ReferenceRows, bounds_of, spatial_order
from index_builder.version_files import check_answers, write_references, write_vectors
from retrieval.artefact import record_files
from retrieval.describer import Describer
from retrieval.errors import ReferenceDataError
from retrieval.exact_vectors import Storage
from retrieval.place_index import REFERENCES_NAME, VECTORS_NAME, BundleIdentity, PlaceIndexManifest, Source
from retrieval.references.reference import ReferenceSource

Step = Literal[
    "draft opened", "described", "vectors written", "references written", "manifest written", "version named", "current"
]

_RAW_NAME: Final = "descriptors.raw"


@dataclass(frozen=True, slots=True)
class BuildSettings:
    """How an index is built.

    Attributes:
        storage: of the vectors; fp16 halves the memory and changes no recall that we could measure.
        describe: how the references are described.
        keep: how many versions remain after publishing, the new one included.
    """

    storage: Storage = "fp16"
    describe: DescribeSettings = field(default_factory=DescribeSettings)
    keep: int = DEFAULT_KEEP


@dataclass(frozen=True, slots=True)
class BuiltIndex:
    """A published version, and the photos that are not in it because they could not be decoded."""

    folder: Path
    manifest: PlaceIndexManifest
    unreadable: list[UnreadablePhoto]


def build_index(
    source: ReferenceSource,
    describer: Describer,
    indexes: Path,
    name: str,
    settings: BuildSettings | None = None,
    *,
    on_progress: Callable[[int], None] | None = None,
    on_step: Callable[[Step], None] | None = None,
) -> BuiltIndex:
    """Describe a reference database and publish it as the new version of an index.

    Args:
        source: the reference database.
        describer: of the bundle to describe it with.
        indexes: the folder of all indexes.
        name: of this index.
        settings: how.
        on_progress: called after each batch with the number of references done in it.
        on_step: called after each step of the protocol.

    Raises:
        ReferenceDataError: no rows, a row without a position, two rows of one id, or too many unreadable photos.
        StorageError: the disk is full or refuses, or another build of this index is running; nothing is published.
        PlaceIndexError: the written version does not answer as it should; nothing is published.
    """
    settings = settings or BuildSettings()
    step = on_step or (lambda _: None)
    dim = describer.bundle.descriptor_dim
    bytes_per_row = dim * (4 + (4 if settings.storage == "fp32" else 2)) + 512
    with draft_version(indexes, name) as draft:
        # Here, where the leftovers of a killed build are gone already.
        check_free_space(indexes, len(source) * bytes_per_row)
        step("draft opened")
        raw = draft.folder / _RAW_NAME
        rows, unreadable = _describe_to_disk(source, describer, raw, settings, on_progress)
        step("described")
        table = rows.table()
        order = spatial_order(table)
        described = np.memmap(raw, np.float32, "r", shape=(len(order), dim))
        write_vectors(draft.folder, order, dim, settings.storage, lambda some: described[some])
        raw.unlink()
        step("vectors written")
        write_references(draft.folder, order, table)
        step("references written")
        manifest = PlaceIndexManifest(
            name=name,
            version=draft.version,
            bundle=BundleIdentity(name=describer.bundle.name, fingerprint=describer.bundle.fingerprint),
            descriptor_dim=dim,
            storage=settings.storage,
            count=len(order),
            bounds=bounds_of(table),
            source=Source(spec=source.spec, root=str(source.root.resolve()), skipped=len(source.skipped)),
            files=record_files(draft.folder, [VECTORS_NAME, REFERENCES_NAME]),
        )
        manifest.write(draft.folder)
        step("manifest written")
        check_answers(draft.folder)
        folder = draft.name_version()
        step("version named")
        draft.make_current()
        step("current")
        prune(draft.index_folder, settings.keep)
    return BuiltIndex(folder, manifest, unreadable)


def _describe_to_disk(
    source: ReferenceSource,
    describer: Describer,
    raw: Path,
    settings: BuildSettings,
    on_progress: Callable[[int], None] | None,
) -> tuple[ReferenceRows, list[UnreadablePhoto]]:
    rows, unreadable = ReferenceRows(source.root), list[UnreadablePhoto]()
    with raw.open("wb") as file:
        for batch in describe_in_batches(source, describer, settings.describe):
            for reference in batch.references:
                rows.append(reference)
            file.write(batch.descriptors.tobytes())
            unreadable.extend(batch.unreadable)
            if on_progress:
                on_progress(len(batch.references) + len(batch.unreadable))
    if not len(rows):
        raise ReferenceDataError(
            "there is no photo to index", where=source.spec, remedy="Look at the source with: sightfix inspect SPEC"
        )
    return rows, unreadable
