"""One string that opens any reference database: ``csv:refs.csv?sessions=phoneA_*``."""

import errno
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Generic
from urllib.parse import unquote

from retrieval.errors import ParameterError, ReferenceDataError
from retrieval.images import FILE_SUFFIXES
from retrieval.references.data_sets import GsvCities, GsvCitiesOptions, Msls, MslsOptions
from retrieval.references.exif import ExifFolder, ExifOptions
from retrieval.references.named_folders import NordlandFolder, NordlandOptions, UtmFolder, UtmOptions
from retrieval.references.reader import FOREIGN_SUFFIXES, Options, parse_options, walk_photos
from retrieval.references.reference import ReferenceSource
from retrieval.references.table_files import CsvRows, CsvTable, ParquetTable
from retrieval.references.tables import TableOptions, find_columns

# Of paths that cannot be those of a file.
_IMPOSSIBLE: Final = (errno.ENAMETOOLONG, errno.ELOOP)
_SHOWN: Final = 200

# At least two letters: C:\photos is a path.
_PREFIX: Final = re.compile(r"([A-Za-z][A-Za-z0-9_-]+):(.*)", re.DOTALL)

_TABLE_KINDS: Final = {".csv": "csv", ".tsv": "csv", ".txt": "csv", ".parquet": "parquet", ".pq": "parquet"}


@dataclass(frozen=True, slots=True)
class ReaderKind(Generic[Options]):
    """A reader and the type of its options."""

    reader: Callable[[Path, Options, str], ReferenceSource]
    options: type[Options]

    def open(self, name: str, location: Path, given: dict[str, str], spec: str) -> ReferenceSource:
        """Open a location with options in the text form of a spec."""
        return self.reader(location, parse_options(name, self.options, given), spec)


READERS: Final[dict[str, ReaderKind[Any]]] = {
    "exif": ReaderKind(ExifFolder, ExifOptions),
    "csv": ReaderKind(CsvTable, TableOptions),
    "parquet": ReaderKind(ParquetTable, TableOptions),
    "utm": ReaderKind(UtmFolder, UtmOptions),
    "gsv-cities": ReaderKind(GsvCities, GsvCitiesOptions),
    "msls": ReaderKind(Msls, MslsOptions),
    "nordland": ReaderKind(NordlandFolder, NordlandOptions),
}


def open_references(spec: str) -> ReferenceSource:
    """Open a reference database.

    Args:
        spec: ``[READER:]PATH[?OPTION=VALUE&…]``. Without the reader, the file suffix or the content of the folder
            decides. Values are percent-encoded where they hold ``&`` or ``%``. Every reader takes the options
            `sessions` (globs), `bbox` (lat_min,lon_min,lat_max,lon_max), `every` and `limit`.

    Returns:
        The source; iterating it yields `Reference` rows.

    Raises:
        ParameterError: no such reader or option (lists those there are), or a bad value.
        ReferenceDataError: no such file or folder, or not what the reader expects; iterating may raise it too.
    """
    try:
        return _open(spec)
    except OSError as error:
        if error.errno not in _IMPOSSIBLE:
            raise
        shown = spec if len(spec) <= _SHOWN else f"{spec[:_SHOWN]}…"
        raise ReferenceDataError(
            f"this cannot be the path of a file or folder ({os.strerror(error.errno)})",
            where=shown,
            remedy="Check the path",
        ) from None


def _open(spec: str) -> ReferenceSource:
    name, text = _split_prefix(spec)
    path_text, given = _split_options(text)
    if not path_text:
        raise ParameterError(
            f"the spec {spec!r} names no file or folder", remedy="Write a path, such as exif:photos/ or csv:refs.csv"
        )
    location = Path(path_text).expanduser()
    if name is not None:
        return READERS[name].open(name, location, given, spec)
    name, opened = _sniff_kind(location)
    rest = text if opened == location else f"{opened}{text[len(path_text) :]}"
    return READERS[name].open(name, opened, given, f"{name}:{rest}")


def _split_prefix(spec: str) -> tuple[str | None, str]:
    match = _PREFIX.fullmatch(spec)
    if match is None or match[1] in READERS:
        return (match[1], match[2]) if match else (None, spec)
    if Path(_split_options(spec)[0]).exists():
        return None, spec
    raise ParameterError(
        f"there is no reader {match[1]!r}", where=spec, remedy=f"Choose {', '.join(READERS)}, or give a path alone"
    )


def _split_options(text: str) -> tuple[str, dict[str, str]]:
    if "?" not in text or Path(text).expanduser().exists():
        return text, {}
    path, _, query = text.partition("?")
    given: dict[str, str] = {}
    for part in filter(None, query.split("&")):
        name, equals, value = part.partition("=")
        if not equals:
            raise ParameterError(f"option {part!r} has no value", where=text, remedy=f"Write ?{part}=VALUE")
        if name in given:
            raise ParameterError(f"option {name!r} is given twice", where=text, remedy="Give it once")
        given[name] = unquote(value)
    return path, given


def _sniff_kind(path: Path) -> tuple[str, Path]:
    """The name of the reader, and the file or folder to open: the table where a folder holds just one.

    A file is recognised by its suffix. A folder is one of GSV-Cities (``Dataframes`` and ``Images``), of MSLS
    (``train_val``), of photos with ``@`` names if its first photo has one, of a table if just one CSV in it has the
    columns path, lat and lon, else of photos with EXIF.

    Raises:
        ReferenceDataError: no such file or folder, a file of another kind, or several tables.
    """
    if path.is_dir():
        return _folder_kind(path)
    suffix = path.suffix.lower()
    if suffix in _TABLE_KINDS:
        return _TABLE_KINDS[suffix], path
    if not path.exists():
        raise ReferenceDataError("there is no such file or folder", where=str(path), remedy="Check the path")
    if suffix in FILE_SUFFIXES | FOREIGN_SUFFIXES:
        remedy = "Give the folder of your photos, or a table of them"
        raise ReferenceDataError("this is a single photo", where=str(path), remedy=remedy)
    raise ReferenceDataError(
        "this is neither a folder nor a table", where=str(path), remedy="Give a folder of photos, a .csv or a .parquet"
    )


def _folder_kind(path: Path) -> tuple[str, Path]:
    if (path / "Dataframes").is_dir() and (path / "Images").is_dir():
        return "gsv-cities", path
    if (path / "train_val").is_dir() or next(path.glob("*/database/postprocessed.csv"), None) is not None:
        return "msls", path
    first = next(walk_photos(path), None)
    if first is not None and first.name.startswith("@"):
        return "utm", path
    tables = [file for file in sorted(path.glob("*.csv")) if _lists_photos(file)]
    if len(tables) > 1:
        raise ReferenceDataError(
            f"the tables {' and '.join(file.name for file in tables[:3])} both list photos"
            if len(tables) == 2
            else f"{len(tables)} tables list photos",
            where=str(path),
            remedy=f"Name one of them, as in csv:{tables[0]}, or exif:{path} to read the photos themselves",
        )
    return ("csv", tables[0]) if tables else ("exif", path)


def _lists_photos(file: Path) -> bool:
    try:
        find_columns(CsvRows.open(file).header, {}, str(file), "csv")
    except ReferenceDataError:
        return False
    return True
