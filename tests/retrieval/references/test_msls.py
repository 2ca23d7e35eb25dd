"""Mapillary Street-level Sequences as it is downloaded."""

from datetime import datetime
from pathlib import Path

import pytest

from retrieval.errors import ParameterError, ReferenceDataError
from retrieval.geo import Position
from retrieval.references import Reference, open_references
from retrieval.references.data_sets import TRAIN_CITIES, VAL_CITIES, Msls, MslsOptions

SUBTASKS = ("all", "s2w", "w2s", "o2n", "n2o", "d2n", "n2d")


def write_part(
    tree: Path, city: str, part: str, keys: str, *, pano: str = "", not_all: str = "", day: str = ""
) -> None:
    """The four tables and the images of one folder; the first columns are the nameless row numbers of pandas."""
    folder = tree / city / part
    (folder / "images").mkdir(parents=True)
    tables = {
        "raw.csv": ",key,lon,lat,ca,captured_at,pano\n",
        "postprocessed.csv": ",key,easting,northing,night,control_panel,view_direction,unique_cluster\n",
        "seq_info.csv": ",key,sequence_key,frame_number\n",
        "subtask_index.csv": ",key," + ",".join(SUBTASKS) + "\n",
    }
    for number, key in enumerate(keys):
        flags = [str(key not in not_all), *["False"] * 4, str(key in day), "False"]
        tables["raw.csv"] += (
            f"{number},{key},12.5{number},55.67{number},{90 + number}.5,2016-05-1{number},{key in pano}\n"
        )
        tables["postprocessed.csv"] += (
            f"{number},{key},34500{number}.25,617350{number}.5,False,False,Forward,{number}\n"
        )
        tables["seq_info.csv"] += f"{number},{key},seq{number // 2},{number}\n"
        tables["subtask_index.csv"] += f"{number},{key},{','.join(flags)}\n"
        (folder / "images" / f"{key}.jpg").touch()
    for name, text in tables.items():
        (folder / name).write_text(text)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    tree = tmp_path / "msls" / "train_val"
    write_part(tree, "cph", "database", "abcd", pano="b", not_all="d")
    write_part(tree, "cph", "query", "ef", day="f")
    write_part(tree, "sf", "database", "gh")
    write_part(tree, "sf", "query", "i")
    write_part(tree, "tokyo", "database", "jk", not_all="k")
    return tmp_path / "msls"


def keys(root: Path, **options: object) -> str:
    return "".join(reference.path.stem for reference in Msls(root, MslsOptions.model_validate(options)))


def test_a_row(root: Path) -> None:
    first, *_ = Msls(root)
    assert first == Reference(
        id="cph/database/images/a.jpg",
        path=root / "train_val/cph/database/images/a.jpg",
        position=Position(55.67, 12.5),
        plane_m=(345000.25, 6173500.5),
        heading_deg=90.5,
        captured_at=datetime(2016, 5, 10),
        session="seq0",
        metadata={
            "city": "cph",
            "night": "False",
            "control_panel": "False",
            "view_direction": "Forward",
            "unique_cluster": "0",
            "frame_number": "0",
        },
    )


def test_cities_of_the_splits() -> None:
    assert VAL_CITIES == ("cph", "sf")
    assert len(set(TRAIN_CITIES)) == 22
    assert not set(TRAIN_CITIES) & set(VAL_CITIES)


def test_val_leaves_out_panoramas_and_frames_without_a_subtask(root: Path) -> None:
    assert keys(root) == "acgh"
    assert keys(root, part="query") == "efi"


def test_train_keeps_frames_without_a_subtask(root: Path) -> None:
    assert keys(root, cities="tokyo") == "jk"
    assert keys(root, cities="tokyo", subtask="all") == "j"


def test_a_subtask(root: Path) -> None:
    assert keys(root, part="query", subtask="d2n", cities="cph") == "f"


def test_the_official_list_of_keys(root: Path, tmp_path: Path) -> None:
    listed = tmp_path / "keys.txt"
    listed.write_text("e\n\ntrain_val/sf/query/images/i.jpg h g\nzzz,1,2\n")
    assert keys(root, part="query", keys=str(listed)) == "ei"
    listed.write_text("zzz\n")
    with pytest.raises(ReferenceDataError, match="no frame is of this subtask and in the list of keys"):
        keys(root, part="query", keys=str(listed))
    listed.write_text("\n")
    with pytest.raises(ReferenceDataError, match=r"keys\.txt: the file lists no key\. Give one key a line\."):
        keys(root, keys=str(listed))
    with pytest.raises(ReferenceDataError, match="there is no such file"):
        keys(root, keys=str(tmp_path / "no.txt"))


def test_both_folders_open_the_same(root: Path) -> None:
    rows = list(Msls(root))
    assert list(Msls(root / "train_val")) == rows
    assert list(open_references(str(root))) == rows
    assert list(open_references(str(root / "train_val"))) == rows
    (first, *_) = open_references(f"msls:{root}?part=query&sessions=seq0&cities=cph")
    assert first.id == "cph/query/images/e.jpg"
    assert len(Msls(root)) == 6


def test_an_image_that_is_not_there(root: Path) -> None:
    (root / "train_val/cph/database/images/c.jpg").unlink()
    with pytest.raises(ReferenceDataError, match=r"cph/database/raw\.csv, row 4: there is no photo .*c\.jpg"):
        keys(root)
    assert keys(root, missing="skip") == "agh"


def test_a_city_that_is_not_there(root: Path) -> None:
    with pytest.raises(ReferenceDataError) as caught:
        keys(root, split="train")
    assert str(caught.value) == (
        f"{root}/train_val: there is no folder trondheim/database. "
        "Give the folder of MSLS that holds train_val, and name the cities you have with cities=…."
    )


def test_split_and_cities_exclude_each_other(root: Path) -> None:
    with pytest.raises(ParameterError, match="split and cities are both given to the reader msls"):
        keys(root, split="val", cities="cph")


def test_tables_that_do_not_belong_together(root: Path) -> None:
    path = root / "train_val/cph/database/postprocessed.csv"
    whole = path.read_text()
    path.write_text(whole.replace(",c,", ",x,"))
    with pytest.raises(ReferenceDataError, match=r"postprocessed\.csv, row 4: key 'x' stands where raw\.csv has 'c'"):
        keys(root)
    path.write_text("".join(whole.splitlines(keepends=True)[:-1]))
    with pytest.raises(ReferenceDataError, match="have different numbers of rows"):
        keys(root)
    path.write_text(whole.replace("345002.25", "far"))
    with pytest.raises(ReferenceDataError, match=r"raw\.csv, row 4: the row cannot be read \(could not convert"):
        keys(root)
    path.write_text(whole.replace("easting", "x"))
    with pytest.raises(ReferenceDataError, match=r"postprocessed\.csv: no column easting\. Its columns are key, x, "):
        keys(root)
