from pathlib import Path

import pytest

from retrieval.errors import IndexNotFoundError, ParameterError
from retrieval.index.folder import check_index_name, current_version, find_index, published_versions
from tests.retrieval.refusal import refused


def lay_out(indexes: Path, name: str, versions: list[str], current: str | None) -> Path:
    folder = indexes / name
    for version in versions:
        (folder / "versions" / version).mkdir(parents=True)
    if current is not None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "CURRENT").write_text(current)
    return folder


@pytest.mark.parametrize("name", ["town", "T2.old_copy-1", "0", "x" * 64])
def test_names_of_letters_digits_and_marks_are_taken(name: str) -> None:
    assert check_index_name(name) == name


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../town", "a/b", "/etc", ".hidden", "-rf", "a b", "town\n", "a\0", "größe", "x" * 65, "a\\b"],
)
def test_other_names_are_refused(name: str, tmp_path: Path) -> None:
    text = (
        f"{name!r} cannot be the name of a place index. "
        "Use up to 64 letters, digits, '.', '_' and '-', starting with a letter or digit."
    )
    with refused(ParameterError, text, "validation_error"):
        check_index_name(name)
    with refused(ParameterError, text, "validation_error"):
        find_index(tmp_path, name)


def test_versions_are_listed_oldest_first_without_drafts(tmp_path: Path) -> None:
    folder = lay_out(tmp_path, "town", ["2026-02", "2026-01", ".tmp-2026-03"], "2026-01")
    (folder / "versions" / "note.txt").write_text("no folder")
    assert published_versions(folder) == ["2026-01", "2026-02"]
    assert published_versions(tmp_path / "none") == []


def test_current_names_the_version(tmp_path: Path) -> None:
    assert current_version(lay_out(tmp_path, "town", ["2026-01", "2026-02"], "2026-01\n")) == "2026-01"


def test_without_current_nothing_is_published(tmp_path: Path) -> None:
    folder = lay_out(tmp_path, "town", ["2026-01"], None)
    text = f"{folder}: there is no published place index. Publish one: sightfix index SPEC --name town."
    with refused(IndexNotFoundError, text, "index_not_found"):
        current_version(folder)


@pytest.mark.parametrize("content", ["2026-09", "", "../../elsewhere", ".tmp-2026-03", "a\nb"])
def test_a_current_that_names_no_version_is_refused(tmp_path: Path, content: str) -> None:
    folder = lay_out(tmp_path, "town", ["2026-01", "2026-02", ".tmp-2026-03"], content)
    text = (
        f"{folder / 'CURRENT'}: CURRENT names version {content!r}, which does not exist. "
        "Write one of the existing versions into it (2026-01, 2026-02)."
    )
    with refused(IndexNotFoundError, text, "version_not_found"):
        current_version(folder)


def test_a_current_without_any_version_asks_to_publish_again(tmp_path: Path) -> None:
    folder = lay_out(tmp_path, "town", [], "2026-09")
    text = (
        f"{folder / 'CURRENT'}: CURRENT names version '2026-09', which does not exist. "
        "Publish again: sightfix index SPEC --name town."
    )
    with refused(IndexNotFoundError, text, "version_not_found"):
        current_version(folder)


def test_a_current_of_binary_rubbish_is_no_index(tmp_path: Path) -> None:
    folder = lay_out(tmp_path, "town", ["2026-01"], None)
    (folder / "CURRENT").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(IndexNotFoundError, match="there is no published place index"):
        current_version(folder)


def test_an_index_is_found_by_name_and_the_only_one_without(tmp_path: Path) -> None:
    town = lay_out(tmp_path, "town", ["1"], "1")
    assert find_index(tmp_path, None) == town
    lay_out(tmp_path, "unpublished", ["1"], None)
    assert find_index(tmp_path, None) == town
    lay_out(tmp_path, "campus", ["1"], "1")
    assert find_index(tmp_path, "town") == town


def test_of_several_indexes_one_must_be_chosen(tmp_path: Path) -> None:
    lay_out(tmp_path, "town", ["1"], "1")
    lay_out(tmp_path, "campus", ["1"], "1")
    text = f"{tmp_path}: there are several place indexes: campus, town. Choose one with --index NAME."
    with refused(IndexNotFoundError, text, "index_not_found"):
        find_index(tmp_path, None)
    with refused(IndexNotFoundError, text.replace("--index", "--name"), "index_not_found"):
        find_index(tmp_path, None, "--name")


@pytest.mark.parametrize("exists", [True, False])
def test_no_index_at_all_is_refused(tmp_path: Path, exists: bool) -> None:
    indexes = tmp_path if exists else tmp_path / "none"
    text = f"{indexes}: there is no place index. Publish one: sightfix index PHOTOS --name NAME."
    with refused(IndexNotFoundError, text, "index_not_found"):
        find_index(indexes, None)


def test_an_unknown_name_is_refused_with_the_choices(tmp_path: Path) -> None:
    text = f"{tmp_path}: there is no place index 'town'. Publish one: sightfix index PHOTOS --name NAME."
    with refused(IndexNotFoundError, text, "index_not_found"):
        find_index(tmp_path, "town")
    lay_out(tmp_path, "campus", ["1"], "1")
    lay_out(tmp_path, "harbour", ["1"], "1")
    text = f"{tmp_path}: there is no place index 'town'. Choose among campus, harbour."
    with refused(IndexNotFoundError, text, "index_not_found"):
        find_index(tmp_path, "town")


def test_a_version_pruned_between_two_looks_is_not_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = lay_out(tmp_path, "town", ["2026-02"], "2026-01")
    is_dir = Path.is_dir

    def published_meanwhile(path: Path) -> bool:
        (folder / "CURRENT").write_text("2026-02\n")
        return is_dir(path)

    monkeypatch.setattr(Path, "is_dir", published_meanwhile)
    assert current_version(folder) == "2026-02"
