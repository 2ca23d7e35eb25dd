"""GSV-Cities: dataframes, and the names of images made of their rows."""

from pathlib import Path

import pytest

from retrieval.errors import ParameterError, ReferenceDataError
from retrieval.geo import Position
from retrieval.references import Reference
from retrieval.references.data_sets import GsvCities, GsvCitiesOptions, image_name

HEADER = "place_id,year,month,northdeg,city_id,lat,lon,panoid\n"
# The first row of London.csv and its image, as the README of amaralibey/gsv-cities states them.
LONDON = "130,2018,4,15,London,51.4861,-0.0895151,6jFjb3wGyCkcBfq4k559ag\n"
LONDON_IMAGE = "London_0000130_2018_04_015_51.4861_-0.0895151_6jFjb3wGyCkcBfq4k559ag.JPG"
# An image of the tree in the same README; its bearing is beyond a full turn.
PARIS = "3,2015,5,584,PRS,48.79733778544615,2.231461206488333,7P0FnGV3k4Fmtw66b8_-Gg\n"
PARIS_IMAGE = "PRS_0000003_2015_05_584_48.79733778544615_2.231461206488333_7P0FnGV3k4Fmtw66b8_-Gg.JPG"


def tree(root: Path, tables: dict[str, str], *images: str) -> Path:
    (root / "Dataframes").mkdir()
    (root / "Images").mkdir()
    for city, rows in tables.items():
        (root / "Dataframes" / f"{city}.csv").write_text(HEADER + rows)
    for image in images:
        path = root / "Images" / image
        path.parent.mkdir(exist_ok=True)
        path.touch()
    return root


def read(root: Path, **options: object) -> list[Reference]:
    return list(GsvCities(root, GsvCitiesOptions.model_validate(options)))


def test_a_row_of_london(tmp_path: Path) -> None:
    root = tree(tmp_path, {"London": LONDON}, f"London/{LONDON_IMAGE}")
    assert read(root) == [
        Reference(
            id=f"Images/London/{LONDON_IMAGE}",
            path=root / "Images" / "London" / LONDON_IMAGE,
            position=Position(51.4861, -0.0895151),
            heading_deg=15.0,
            session="London_2018_04",
            metadata={
                "city": "London",
                "place_id": "130",
                "year": "2018",
                "month": "4",
                "panoid": "6jFjb3wGyCkcBfq4k559ag",
            },
        )
    ]


def test_a_row_of_paris(tmp_path: Path) -> None:
    (reference,) = read(tree(tmp_path, {"Paris": PARIS}, f"PRS/{PARIS_IMAGE}"))
    assert reference.path.name == PARIS_IMAGE
    assert reference.heading_deg == 224.0
    assert reference.session == "PRS_2015_05"


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"place_id": "500013"}, "X_0000013_2008_09_348_51.5_-0.12_p.JPG"),
        ({"lat": "51.50", "lon": "-0.1200"}, "X_0000013_2008_09_348_51.5_-0.12_p.JPG"),
        ({"lat": "51", "northdeg": "0"}, "X_0000013_2008_09_000_51.0_-0.12_p.JPG"),
    ],
)
def test_names_as_pandas_would_write_the_numbers(change: dict[str, str], name: str) -> None:
    row = dict(zip(HEADER.strip().split(","), ["13", "2008", "9", "348", "X", "51.5", "-0.12", "p"], strict=True))
    assert image_name(row | change) == name


@pytest.mark.parametrize(
    "image",
    [
        f"London/{LONDON_IMAGE}",
        f"London/{LONDON_IMAGE[:-4]}.jpg",
        f"LDN/{LONDON_IMAGE}",
        f"LDN/{LONDON_IMAGE[:-4]}.jpg",
    ],
)
def test_copies_with_other_suffixes_and_folders(tmp_path: Path, image: str) -> None:
    root = tree(tmp_path, {"LDN": LONDON}, image)
    (reference,) = read(root)
    assert reference.path == root / "Images" / image
    assert reference.id == f"Images/London/{LONDON_IMAGE}", "the id does not depend on the copy"


def test_an_image_that_is_not_there(tmp_path: Path) -> None:
    root = tree(tmp_path, {"London": LONDON})
    with pytest.raises(ReferenceDataError) as caught:
        read(root)
    assert str(caught.value) == (
        f"{root}/Dataframes/London.csv, row 2: there is no photo {root}/Images/London/{LONDON_IMAGE}. "
        "Correct the path, or leave such rows out with missing=skip in the spec."
    )


def test_cities_are_chosen(tmp_path: Path) -> None:
    root = tree(tmp_path, {"Paris": PARIS, "London": LONDON})
    assert [r.metadata["city"] for r in read(root, missing="ignore")] == ["London", "PRS"]
    assert [r.metadata["city"] for r in read(root, missing="ignore", cities="Paris")] == ["PRS"]
    assert len(GsvCities(root, GsvCitiesOptions(cities=("Paris", "London")))) == 2
    with pytest.raises(ParameterError) as caught:
        read(root, cities="Rome")
    assert str(caught.value) == f"{root}: GSV-Cities has no city 'Rome' here. Its cities are London, Paris."


def test_bad_tables(tmp_path: Path) -> None:
    root = tree(tmp_path, {"London": LONDON.replace(",15,", ",north,")})
    with pytest.raises(
        ReferenceDataError, match=r"London\.csv, row 2: the row cannot be read \(invalid literal for int"
    ):
        read(root, missing="ignore")
    (root / "Dataframes" / "London.csv").write_text("place_id,lat,lon\n")
    with pytest.raises(ReferenceDataError, match=r"London\.csv: no column year\. A dataframe of GSV-Cities has"):
        read(root, missing="ignore")
    (root / "Dataframes" / "London.csv").unlink()
    with pytest.raises(ReferenceDataError, match=r"there is no Dataframes/<city>\.csv in this folder"):
        GsvCities(root)
