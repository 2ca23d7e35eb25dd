"""Which reader a path is for, when its spec does not say."""

from pathlib import Path
from typing import Final

from retrieval.errors import ReferenceDataError
from retrieval.images import FILE_SUFFIXES
from retrieval.references.columns import find_columns
from retrieval.references.csv_rows import CsvRows
from retrieval.references.photo_folder import FOREIGN_SUFFIXES, walk_photos

_TABLE_KINDS: Final = {".csv": "csv", ".tsv": "csv", ".txt": "csv", ".parquet": "parquet", ".pq": "parquet"}


def sniff_kind(path: Path) -> tuple[str, Path]:
    """The name of the reader, and the file or folder to open: the table where a folder holds just one.

    A file is told by its suffix. A folder is one of GSV-Cities (``Dataframes`` and ``Images``), of MSLS
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
        "this is neither a folder nor a table",
        where=str(path),
        remedy="Give a folder of photos, a .csv or a .parquet",
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
