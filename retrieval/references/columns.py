"""Which column of a table holds what."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

from pydantic import Field

from retrieval.errors import ReferenceDataError
from retrieval.references.reader import ListedOptions

ColumnField = Literal["path", "lat", "lon", "id", "heading", "altitude", "captured_at", "session"]

FIELDS: Final[tuple[ColumnField, ...]] = get_args(ColumnField)
REQUIRED: Final[tuple[ColumnField, ...]] = ("path", "lat", "lon")

# Other names that a field goes by; compared in lower case.
ALIASES: Final[Mapping[ColumnField, tuple[str, ...]]] = {
    "path": ("filename", "file_name", "filepath", "file_path", "file", "image", "image_path", "image_name", "photo"),
    "lat": ("latitude",),
    "lon": ("longitude", "lng", "long"),
    "id": ("reference_id", "image_id", "photo_id"),
    "heading": ("heading_deg", "bearing", "compass_angle"),
    "altitude": ("altitude_m", "alt"),
    "captured_at": ("timestamp", "datetime", "date_time", "taken_at", "time"),
    "session": ("session_id", "sequence", "sequence_id", "sequence_key"),
}


class TableOptions(ListedOptions):
    """Options of `csv:` and `parquet:`.

    Attributes:
        root: the folder that paths in the table start from; the table's own folder if left out.
        path, lat, lon, id, heading, altitude, captured_at, session: the column that holds it, where the name differs.
    """

    root: str | None = None
    path: str | None = Field(default=None, min_length=1)
    lat: str | None = Field(default=None, min_length=1)
    lon: str | None = Field(default=None, min_length=1)
    id: str | None = Field(default=None, min_length=1)
    heading: str | None = Field(default=None, min_length=1)
    altitude: str | None = Field(default=None, min_length=1)
    captured_at: str | None = Field(default=None, min_length=1)
    session: str | None = Field(default=None, min_length=1)

    def named_columns(self) -> dict[ColumnField, str]:
        """The columns that were given by name."""
        given = {name: getattr(self, name) for name in FIELDS}
        return {name: column for name, column in given.items() if column is not None}


@dataclass(frozen=True, slots=True)
class Columns:
    """Where the fields of a reference stand in a row.

    Attributes:
        names: of all columns, in order.
        fields: position of the column of each field that the table has.
        extra: position and name of the other columns, which become metadata.
    """

    names: tuple[str, ...]
    fields: Mapping[ColumnField, int]
    extra: tuple[tuple[int, str], ...]


def find_columns(names: Sequence[str], given: Mapping[ColumnField, str], where: str, kind: str) -> Columns:
    """Decide which column holds what: the one named in the spec, else the one of the field's own name, else an alias.

    Args:
        names: of the columns, in order.
        given: field → column, from the spec.
        where: the file, for errors.
        kind: the reader's name, for the example in an error.

    Raises:
        ReferenceDataError: no column for path, lat or lon; a named column that there is not; two aliases of one field.
    """
    fields: dict[ColumnField, int] = {}
    for field in FIELDS:
        column = _column(field, names, given.get(field), where, kind)
        if column is not None:
            fields[field] = column
        elif field in REQUIRED:
            raise ReferenceDataError(
                f"no column holds {field}",
                where=where,
                remedy=f"Its columns are {_listed(names)}: say which one in the spec, as in {kind}:…?{field}=COLUMN",
            )
    taken = set(fields.values())
    extra = tuple((place, name) for place, name in enumerate(names) if name and place not in taken)
    return Columns(tuple(names), fields, extra)


def _column(field: ColumnField, names: Sequence[str], given: str | None, where: str, kind: str) -> int | None:
    if given is not None:
        if given not in names:
            raise ReferenceDataError(
                f"there is no column {given!r} to take {field} from",
                where=where,
                remedy=f"Its columns are {_listed(names)}",
            )
        return list(names).index(given)
    lower = [name.lower() for name in names]
    for candidates in ((field,), ALIASES[field]):
        found = [place for place, name in enumerate(lower) if name in candidates]
        if len(found) > 1:
            both = " and ".join(names[place] for place in found)
            raise ReferenceDataError(
                f"the columns {both} could each hold {field}",
                where=where,
                remedy=f"Say which one in the spec, as in {kind}:…?{field}={names[found[0]]}",
            )
        if found:
            return found[0]
    return None


def _listed(names: Sequence[str]) -> str:
    return ", ".join(name or "(no name)" for name in names)
