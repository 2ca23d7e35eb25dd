"""Two data sets as they are downloaded: GSV-Cities and MSLS.

GSV-Cities (Ali-bey et al., Neurocomputing 2022) has 530,000 Street View photos of 67,000 places in 23 cities; MSLS is
Mapillary Street-level Sequences (Warburg et al., CVPR 2020).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product, zip_longest
from pathlib import Path
from typing import ClassVar, Final, Literal

from retrieval.errors import ParameterError, ReferenceDataError
from retrieval.geo import Position
from retrieval.references.reader import ListedOptions, ListedReader, Names, Row, check_folder, no_such, relative_id
from retrieval.references.reference import Reference, SkippedPhoto
from retrieval.references.table_files import CsvRows
from retrieval.references.tables import parse_time

COLUMNS: Final = ("place_id", "year", "month", "northdeg", "city_id", "lat", "lon", "panoid")
_PLACES_A_CITY: Final = 10**5
_SUFFIXES: Final = (".JPG", ".jpg")
VAL_CITIES: Final = ("cph", "sf")

TRAIN_CITIES: Final = (
    "trondheim", "london", "boston", "melbourne", "amsterdam", "helsinki", "tokyo", "toronto", "saopaulo", "moscow",
    "zurich", "paris", "bangkok", "budapest", "austin", "berlin", "ottawa", "phoenix", "goa", "amman", "nairobi",
    "manila",
)  # fmt: skip

_TREE: Final = "train_val"
_UNPACK_AGAIN: Final = "Unpack the metadata of MSLS again: its tables list the same images in the same order"
Subtask = Literal["all", "s2w", "w2s", "o2n", "n2o", "d2n", "n2d"]


class GsvCitiesOptions(ListedOptions):
    """Options of `gsv-cities:`.

    Attributes:
        cities: read only these, by the names of their dataframes; empty reads all.
    """

    cities: Names = ()


class GsvCities(ListedReader[GsvCitiesOptions]):
    """`gsv-cities:FOLDER`: ``Dataframes/<city>.csv`` and ``Images/<city>/*.JPG``.

    The heading is northdeg, the session ``<city>_<year>_<month>``. Metadata: place_id (unique within its city only),
    city, year, month, panoid. The day is not known, so `captured_at` is None.

    Raises:
        ReferenceDataError: no such folder, no dataframe in it; when iterated: a row that cannot be read, a listed photo
            that does not exist.
        ParameterError: a city that there is not.
    """

    kind: ClassVar[str] = "gsv-cities"
    nothing = "the dataframes have no rows"
    nothing_remedy = unusable_remedy = "Download the data set again: its folder holds Dataframes and Images"

    def __init__(self, location: Path, options: GsvCitiesOptions | None = None, spec: str | None = None) -> None:
        check_folder(location)
        super().__init__(location, options or GsvCitiesOptions(), location, spec)
        self.tables = self._choose_tables()

    def _choose_tables(self) -> list[Path]:
        there = {path.stem: path for path in sorted((self.location / "Dataframes").glob("*.csv"))}
        if not there:
            raise ReferenceDataError(
                "there is no Dataframes/<city>.csv in this folder",
                where=str(self.location),
                remedy="Give the folder of GSV-Cities that holds Dataframes and Images",
            )
        for city in self.options.cities:
            if city not in there:
                raise ParameterError(
                    f"GSV-Cities has no city {city!r} here",
                    where=str(self.location),
                    remedy=f"Its cities are {', '.join(there)}",
                )
        return [there[city] for city in self.options.cities] or list(there.values())

    def _read(self, skipped: list[SkippedPhoto]) -> Iterator[tuple[Row | None, Reference]]:
        for table in self.tables:
            rows = CsvRows.open(table)
            missing = [name for name in COLUMNS if name not in rows.header]
            if missing:
                raise ReferenceDataError(
                    f"no column {missing[0]}",
                    where=str(table),
                    remedy=f"A dataframe of GSV-Cities has the columns {', '.join(COLUMNS)}",
                )
            places = [rows.header.index(name) for name in COLUMNS]
            for row, values in rows:
                record = {name: values[place].strip() for name, place in zip(COLUMNS, places, strict=True)}
                try:
                    reference = self._reference(record)
                except (ValueError, ParameterError) as error:
                    raise ReferenceDataError(
                        f"the row cannot be read ({str(error).rstrip('.')})",
                        where=str(Row(table, row)),
                        remedy="Download the dataframe again",
                    ) from None
                yield Row(table, row), reference

    def _reference(self, record: Mapping[str, str]) -> Reference:
        city = record["city_id"]
        path = self.location / "Images" / city / image_name(record)
        return Reference(
            id=relative_id(path, self.root),
            path=path,
            position=Position(float(record["lat"]), float(record["lon"])),
            heading_deg=float(record["northdeg"]) % 360.0,
            session=f"{city}_{int(record['year']):04d}_{int(record['month']):02d}",
            metadata={"city": city, **{name: record[name] for name in ("place_id", "year", "month", "panoid")}},
        )

    def _other_places(self, row: Row | None, path: Path) -> Iterator[Path]:
        # Some copies write the suffix small, or name the folder as the dataframe (Paris) and not as the city (PRS).
        folders = dict.fromkeys((path.parent.name, row.file.stem if row else path.parent.name))
        for folder, suffix in product(folders, _SUFFIXES):
            yield path.parents[1] / folder / f"{path.name.removesuffix(_SUFFIXES[0])}{suffix}"

    def _count(self) -> int:
        return sum(CsvRows.open(table).count() for table in self.tables)


def image_name(record: Mapping[str, str]) -> str:
    """The file name of a row: ``London_0000130_2018_04_015_51.4861_-0.0895151_6jFjb3wGyCkcBfq4k559ag.JPG``.

    Place ids of dataframes that were merged carry the number of their city in front of five digits; it is cut off.

    Args:
        record: the row, column → text.

    Raises:
        ValueError: a number that is none.
    """
    place = int(record["place_id"]) % _PLACES_A_CITY
    # The names were made by pandas, which writes a coordinate as the shortest text that reads back as the same number.
    lat, lon = repr(float(record["lat"])), repr(float(record["lon"]))
    year, month, north = int(record["year"]), int(record["month"]), int(record["northdeg"])
    return f"{record['city_id']}_{place:07d}_{year:04d}_{month:02d}_{north:03d}_{lat}_{lon}_{record['panoid']}.JPG"


class MslsOptions(ListedOptions):
    """Options of `msls:`.

    Attributes:
        split: val (cph, sf) or train (22 cities).
        cities: these instead of a split.
        part: database or query.
        subtask: keep frames of this subtask: all, or s2w, w2s (summer, winter), o2n, n2o (old, new), d2n, n2d (day,
            night). Left out, val keeps those of `all`, as the benchmark does, and train keeps every frame.
        keys: a text file of image keys to keep, one a line, such as the official list of 740 val queries; a line may be
            a path (its stem is the key) and what follows a space or comma is passed over.
    """

    split: Literal["val", "train"] = "val"
    cities: Names = ()
    part: Literal["database", "query"] = "database"
    subtask: Subtask | None = None
    keys: str | None = None


@dataclass(frozen=True, slots=True)
class _Tables:
    """The four tables of a city's part, which list the same images in the same order."""

    raw: CsvRows
    postprocessed: CsvRows
    sequences: CsvRows
    subtasks: CsvRows | None

    def together(self) -> Iterator[tuple[Row, dict[str, str]]]:
        """Yield the values of each image: column → text, of all tables."""
        tables = [table for table in (self.raw, self.postprocessed, self.sequences, self.subtasks) if table is not None]
        for rows in zip_longest(*tables):
            if None in rows:
                raise ReferenceDataError(
                    f"the tables {', '.join(table.path.name for table in tables)} have different numbers of rows",
                    where=str(self.raw.path.parent),
                    remedy=_UNPACK_AGAIN,
                )
            record: dict[str, str] = {}
            for table, (number, values) in zip(tables, rows, strict=True):
                named = dict(zip(table.header, values, strict=True))
                if record and named["key"] != record["key"]:
                    raise ReferenceDataError(
                        f"key {named['key']!r} stands where {self.raw.path.name} has {record['key']!r}",
                        where=str(Row(table.path, number)),
                        remedy=_UNPACK_AGAIN,
                    )
                record |= named
            yield Row(self.raw.path, rows[0][0]), record


class Msls(ListedReader[MslsOptions]):
    """`msls:FOLDER`: the raw tree ``train_val/<city>/{query,database}/{images/*.jpg,raw.csv,postprocessed.csv,…}``.

    Panoramas are left out. Position, heading (ca) and time are those of raw.csv, `plane_m` the easting and northing of
    postprocessed.csv, in which the benchmark measures; the session is the sequence. Metadata: city, night,
    control_panel, view_direction, unique_cluster, frame_number.

    Raises:
        ReferenceDataError: no such folder, city, table or column; when iterated: a row that cannot be read, a listed
            photo that does not exist.
        ParameterError: `split` and `cities` do not go together.
    """

    kind: ClassVar[str] = "msls"
    nothing = "no frame is of this subtask and in the list of keys"
    nothing_remedy = unusable_remedy = "Check part, subtask and keys; panoramas never count"

    def __init__(self, location: Path, options: MslsOptions | None = None, spec: str | None = None) -> None:
        check_folder(location)
        options = options or MslsOptions()
        tree = location / _TREE if (location / _TREE).is_dir() else location
        super().__init__(location, options, tree, spec)
        if options.cities and "split" in options.model_fields_set:
            raise ParameterError("split and cities are both given to the reader msls", remedy="Give one of them")
        self.cities: Sequence[str] = options.cities or (VAL_CITIES if options.split == "val" else TRAIN_CITIES)
        self._keys = None if options.keys is None else _read_keys(Path(options.keys).expanduser())
        self._tables = {city: self._open_tables(city) for city in self.cities}

    def _open_tables(self, city: str) -> _Tables:
        folder = self.root / city / self.options.part
        if not folder.is_dir():
            raise ReferenceDataError(
                f"there is no folder {city}/{self.options.part}",
                where=str(self.root),
                remedy="Give the folder of MSLS that holds train_val, and name the cities you have with cities=…",
            )
        subtask = self._subtask(city)
        return _Tables(
            raw=_table(folder / "raw.csv", ("key", "lon", "lat", "ca", "captured_at", "pano")),
            postprocessed=_table(folder / "postprocessed.csv", ("key", "easting", "northing")),
            sequences=_table(folder / "seq_info.csv", ("key", "sequence_key", "frame_number")),
            subtasks=None if subtask is None else _table(folder / "subtask_index.csv", ("key", subtask)),
        )

    def _subtask(self, city: str) -> str | None:
        return self.options.subtask or ("all" if city in VAL_CITIES else None)

    def _read(self, skipped: list[SkippedPhoto]) -> Iterator[tuple[Row | None, Reference]]:
        for city, tables in self._tables.items():
            subtask = self._subtask(city)
            for row, record in tables.together():
                if record["pano"] == "True" or (subtask is not None and record[subtask] != "True"):
                    continue
                if self._keys is not None and record["key"] not in self._keys:
                    continue
                try:
                    reference = self._reference(city, record)
                except (ValueError, ParameterError) as error:
                    raise ReferenceDataError(
                        f"the row cannot be read ({str(error).rstrip('.')})", where=str(row), remedy=_UNPACK_AGAIN
                    ) from None
                yield row, reference

    def _reference(self, city: str, record: dict[str, str]) -> Reference:
        path = self.root / city / self.options.part / "images" / f"{record['key']}.jpg"
        further = ("night", "control_panel", "view_direction", "unique_cluster", "frame_number")
        return Reference(
            id=relative_id(path, self.root),
            path=path,
            position=Position(float(record["lat"]), float(record["lon"])),
            plane_m=(float(record["easting"]), float(record["northing"])),
            heading_deg=float(record["ca"]) % 360.0 if record["ca"] else None,
            captured_at=parse_time(record["captured_at"]),
            session=record["sequence_key"],
            metadata={"city": city, **{name: record[name] for name in further if record.get(name)}},
        )

    def _count(self) -> int:
        return sum(tables.raw.count() for tables in self._tables.values())


def _table(path: Path, columns: Sequence[str]) -> CsvRows:
    table = CsvRows.open(path)
    missing = [name for name in columns if name not in table.header]
    if missing:
        raise ReferenceDataError(
            f"no column {missing[0]}",
            where=str(path),
            remedy=f"Its columns are {', '.join(filter(None, table.header))}",
        )
    return table


def _read_keys(path: Path) -> frozenset[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise ReferenceDataError("the text is not UTF-8", where=str(path), remedy="Give one key a line") from None
    except OSError:
        raise no_such(path, "file") from None
    firsts = (line.replace(",", " ").split() for line in lines)
    keys = frozenset(words[0].rpartition("/")[2].removesuffix(".jpg") for words in firsts if words)
    if not keys:
        raise ReferenceDataError("the file lists no key", where=str(path), remedy="Give one key a line")
    return keys
