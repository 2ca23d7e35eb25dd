from pathlib import Path

import pytest

from index_builder.update_plan import PathsBelow


@pytest.mark.parametrize(
    ("root", "path", "below"),
    [
        ("/data/town", "/data/town/a.jpg", "a.jpg"),
        ("/data/town", "/data/town/2026/a b.jpg", "2026/a b.jpg"),
        ("/data/town/", "/data/town//2026/./a.jpg", "2026/a.jpg"),
        ("/data/town", "/data/town/2026/../a.jpg", "a.jpg"),
        ("/data/town", "/data/town/../a.jpg", "/data/a.jpg"),
        ("/data/town", "/data/town2/a.jpg", "/data/town2/a.jpg"),
        ("/data/town", "/data/town/.hidden.jpg", ".hidden.jpg"),
        ("/data/town", "/data/town/..a.jpg", "..a.jpg"),
        ("/", "/a.jpg", "a.jpg"),
    ],
)
def test_paths_below_a_root(root: str, path: str, below: str) -> None:
    assert PathsBelow(Path(root)).below(path) == below
    assert PathsBelow(Path(root)).below(Path(path)) == below


def test_relative_paths_start_from_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert PathsBelow(Path("photos")).below("photos/a.jpg") == "a.jpg"
    assert PathsBelow(tmp_path).below("photos/a.jpg") == "photos/a.jpg"


def test_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    assert PathsBelow(tmp_path).below(tmp_path / "link" / "a.jpg") == "link/a.jpg"
