"""GSV-Cities: 530 000 Street View photos of 67 000 places in 23 cities (Ali-bey et al., Neurocomputing 2022)."""

from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import ClassVar, Final

from retrieval.errors import ParameterError, ReferenceDataError
from retrieval.geo import Position
from retrieval.references.csv_rows import CsvRows
from retrieval.references.photo_folder import count_reasons, relative_id
from retrieval.references.reader import ListedOptions, ListedReader, Names, Row, check_folder
from retrieval.references.reference import Reference, SkippedPhoto

COLUMNS: Final = ("place_id", "year", "month", "northdeg", "city_id", "lat", "lon", "panoid")
_PLACES_A_CITY: Final = 10**5
_SUFFIXES: Final = (".JPG", ".jpg")


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

    def _nothing_read(self, skipped: list[SkippedPhoto]) -> ReferenceDataError:
        found = f"none of {len(skipped)} photos can be used: {count_reasons(skipped)}"
        return ReferenceDataError(
            found if skipped else "the dataframes have no rows",
            where=str(self.location),
            remedy="Download the data set again: its folder holds Dataframes and Images",
        )


def image_name(record: Mapping[str, str], suffix: str = ".JPG") -> str:
    """The file name of a row: ``London_0000130_2018_04_015_51.4861_-0.0895151_6jFjb3wGyCkcBfq4k559ag.JPG``.

    Place ids of dataframes that were merged carry the number of their city in front of five digits; it is cut off.

    Args:
        record: the row, column → text.
        suffix: of the file.

    Raises:
        ValueError: a number that is none.
    """
    place = int(record["place_id"]) % _PLACES_A_CITY
    # The names were made by pandas, which writes a coordinate as the shortest text that reads back as the same number.
    lat, lon = repr(float(record["lat"])), repr(float(record["lon"]))
    year, month, north = int(record["year"]), int(record["month"]), int(record["northdeg"])
    return f"{record['city_id']}_{place:07d}_{year:04d}_{month:02d}_{north:03d}_{lat}_{lon}_{record['panoid']}{suffix}"
