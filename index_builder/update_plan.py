"""What an update takes over from the current version, what it describes, and what it drops.

Paths are absolute until the table of the new version is made.
"""

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from index_builder.update_observer import UpdateObserver
from retrieval.artefact import new_file
from retrieval.errors import IndexNotFoundError, ReferenceDataError
from retrieval.images import LeftOut
from retrieval.index.manifest import Source
from retrieval.index.place_index import REFERENCES_NAME, PlaceIndex
from retrieval.index.reference_table import REFERENCE_SCHEMA, read_references, reference_rows
from retrieval.references.reference import ReferenceSource

Item = TypeVar("Item")
LISTING_NAME: Final = "listed.parquet"
_METADATA_KEY: Final = b"sightfix"
_ASK_EVERY_S: Final = 0.2
_NAMED: Final = 3
_NOT_PLAIN: Final = (f"{os.sep}{os.sep}", f"{os.sep}.")
_COLUMNS_OF_THE_SOURCE: Final = [name for name in REFERENCE_SCHEMA.names if name not in ("path", "content_sha256")]


class PathsBelow:
    """Paths below a root with ``/``, and whole paths elsewhere. Links stay as they are.

    Args:
        root: the folder.
    """

    def __init__(self, root: Path) -> None:
        whole = os.path.abspath(root)  # noqa: PTH100 - resolve() would follow links out of the root
        self._start = whole if whole.endswith(os.sep) else whole + os.sep

    def below(self, path: str | Path) -> str:
        """The path below the root, or the whole path where it lies elsewhere."""
        text = str(path)
        # Nearly all paths are plain already, and there are millions.
        if not os.path.isabs(text) or any(sign in text for sign in _NOT_PLAIN):  # noqa: PTH117
            text = os.path.abspath(text)  # noqa: PTH100
        if text.startswith(self._start):
            text = text[len(self._start) :]
            return text if os.sep == "/" else text.replace(os.sep, "/")
        return text


@dataclass(frozen=True, slots=True)
class Listing:
    """What a source held when the update began: after a crash it is not read again.

    Attributes:
        table: rows of `REFERENCE_SCHEMA`, paths absolute and below the root with links resolved.
        source: its spec, its root with links resolved, and how many photos it left out.
    """

    table: pa.Table
    source: Source


@dataclass(frozen=True, slots=True)
class UpdatePlan:
    """What becomes of the rows.

    Attributes:
        base: the current version, or None for an index made anew.
        kept: (K,) int64, the rows of the base that are taken over with their vectors.
        to_describe: rows of `REFERENCE_SCHEMA` with absolute paths.
        source: what the new version says of where its references come from.
        photo_root: of the photos that are described.
        skipped: photos that the source left out.
    """

    base: PlaceIndex | None
    kept: NDArray[np.int64]
    to_describe: pa.Table
    source: Source
    photo_root: Path
    skipped: int

    @property
    def changes_nothing(self) -> bool:
        """Whether the current version is the result already."""
        return self.base is not None and len(self.kept) == self.base.count and not self.to_describe.num_rows


def list_source(source: ReferenceSource, work: Path | None, observer: UpdateObserver) -> Listing:
    """Read a source to its end, or the listing that an earlier run left in the work folder.

    Args:
        source: the reference database.
        work: where the listing is kept; None keeps none.
        observer: called with what was left out; may raise to stop.

    Raises:
        ReferenceDataError: what the source raises; a row without a position; two rows of one id.
        OSError: the disk refuses.
    """
    path = work / LISTING_NAME if work is not None else None
    if path is not None and path.is_file():
        table = pq.read_table(path)
        return Listing(table.cast(REFERENCE_SCHEMA), Source.model_validate_json(table.schema.metadata[_METADATA_KEY]))
    root = source.root.resolve()
    below = PathsBelow(source.root).below

    # Below the root links stay as they are; the root itself is resolved, as the manifest names it.
    table = reference_rows(
        _stoppable(source, observer),
        lambda photo: os.path.join(root, below(photo)),  # noqa: PTH118 - of every photo
    )
    listed = Source(spec=source.spec, root=str(root), skipped=len(source.skipped))
    observer.listed(table.num_rows, [LeftOut(below(one.path), "skipped", one.reason) for one in source.skipped])
    if path is not None:
        _keep(table, listed, path)
    return Listing(table, listed)


def plan_all(listing: Listing) -> UpdatePlan:
    """Describe everything."""
    nothing = np.empty(0, np.int64)
    root = Path(listing.source.root)
    return UpdatePlan(None, nothing, listing.table, listing.source, root, listing.source.skipped)


def plan_append(base: PlaceIndex, listing: Listing, *, describe_again: bool) -> UpdatePlan:
    """Describe the references that the index does not have, and those whose row says something else now.

    Args:
        base: the current version.
        listing: of the source.
        describe_again: describe all references of the source, also those that look unchanged: a photo that was edited
            in place cannot be recognised by its row.

    Raises:
        ReferenceDataError: a reference has the id of another photo of the index (``reference_id_conflict``).
    """
    old_root = Path(base.manifest.source.root)
    old_table = read_references(base.folder / REFERENCES_NAME)
    old_rows = {record["id"]: (row, record) for row, record in enumerate(old_table.to_pylist())}
    chosen, dropped = list[int](), list[int]()
    for number, record in enumerate(listing.table.to_pylist()):
        known = old_rows.get(record["id"])
        if known is None:
            chosen.append(number)
            continue
        row, old = known
        _check_same_photo(record, old_root / old["path"], base.name)
        if describe_again or any(record[name] != old[name] for name in _COLUMNS_OF_THE_SOURCE):
            chosen.append(number)
            dropped.append(row)
    kept = np.setdiff1d(np.arange(base.count, dtype=np.int64), np.array(dropped, np.int64))
    to_describe = listing.table.take(pa.array(chosen, pa.int64()))
    source = _joined(base.manifest.source, listing.source)
    root = Path(listing.source.root)
    return UpdatePlan(base, kept, to_describe, source, root, listing.source.skipped)


def plan_remove(base: PlaceIndex, reference_ids: Sequence[str] | None, observer: UpdateObserver) -> UpdatePlan:
    """Drop references.

    Args:
        base: the current version.
        reference_ids: which; None drops those whose photos are no longer where they were indexed.
        observer: may raise to stop.

    Raises:
        IndexNotFoundError: the index has no such reference (``reference_not_found``).
        ReferenceDataError: none would remain (``index_would_be_empty``), or the photos' root is gone as a whole.
    """
    table = read_references(base.folder / REFERENCES_NAME)
    rows = _missing(base, table, observer) if reference_ids is None else _rows_of(base, table, reference_ids)
    if len(rows) == base.count:
        raise ReferenceDataError(
            f"no reference would remain in the index {base.name}",
            remedy="Keep at least one, or delete the index's folder when no server uses it",
            code="index_would_be_empty",
        )
    kept = np.setdiff1d(np.arange(base.count, dtype=np.int64), rows)
    source = base.manifest.source
    nothing = REFERENCE_SCHEMA.empty_table()
    return UpdatePlan(base, kept, nothing, source, Path(source.root), 0)


def paths_below(table: pa.Table, root: Path) -> pa.Table:
    """A reference table with its paths relative to a root where they lie below it."""
    below = PathsBelow(root).below
    paths = [below(path) for path in table["path"].to_pylist()]
    place = table.schema.get_field_index("path")
    return table.set_column(place, REFERENCE_SCHEMA.field("path"), pa.array(paths, pa.string()))


def _keep(table: pa.Table, listed: Source, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    marked = table.replace_schema_metadata({_METADATA_KEY: listed.model_dump_json().encode()})
    with new_file(path) as temporary:
        pq.write_table(marked, temporary, compression="zstd")


def _check_same_photo(record: dict[str, Any], old: Path, name: str) -> None:
    new = Path(record["path"])
    if new != old and os.path.realpath(new) != os.path.realpath(old):
        raise ReferenceDataError(
            f"the index {name} has a reference {record['id']!r} already, of another photo ({old})",
            where=str(new),
            remedy="Give ids that differ (an id column in a CSV), index a folder above both, or make it anew (full)",
            code="reference_id_conflict",
        )


def _joined(old: Source, new: Source) -> Source:
    specs = old.spec.split(" + ")
    spec = old.spec if new.spec in specs else " + ".join([*specs, new.spec])
    return Source(spec=spec, root=old.root, skipped=old.skipped + new.skipped)


def _rows_of(base: PlaceIndex, table: pa.Table, reference_ids: Sequence[str]) -> NDArray[np.int64]:
    row_of = {name: row for row, name in enumerate(table["id"].to_pylist())}
    unknown = [name for name in reference_ids if name not in row_of]
    if unknown:
        more = f" and {len(unknown) - _NAMED} more" if len(unknown) > _NAMED else ""
        raise IndexNotFoundError(
            f"the index {base.name} has no reference {', '.join(map(repr, unknown[:_NAMED]))}{more}",
            remedy="Take reference_ids from an answer; nothing was removed",
            code="reference_not_found",
        )
    return np.unique(np.array([row_of[name] for name in reference_ids], np.int64))


def _missing(base: PlaceIndex, table: pa.Table, observer: UpdateObserver) -> NDArray[np.int64]:
    root = Path(base.manifest.source.root)
    if not root.is_dir():
        raise ReferenceDataError(
            "the folder of all photos is gone, not only some photos",
            where=str(root),
            remedy="Mount or restore it; to remove references all the same, name them (reference_ids)",
            code="source_unavailable",
        )
    paths = _stoppable(table["path"].to_pylist(), observer)
    return np.array([row for row, path in enumerate(paths) if not (root / path).is_file()], np.int64)


def _stoppable(items: Iterable[Item], observer: UpdateObserver) -> Iterator[Item]:
    """The same items; between them the observer may raise to stop."""
    asked = time.monotonic()
    for item in items:
        yield item
        if time.monotonic() - asked > _ASK_EVERY_S:
            observer.check_stopped()
            asked = time.monotonic()
