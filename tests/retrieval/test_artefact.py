import errno
import hashlib
import json
import os
from pathlib import Path
from typing import Literal

import pytest

from retrieval import __version__
from retrieval.artefact import (
    FileRecord,
    Manifest,
    hash_file,
    record_files,
    rename_into_place,
    replace_file,
    storage_errors,
    verify_files,
    write_flushed,
)
from retrieval.errors import ArtefactError, BundleError, StorageError
from tests.manifest_hash import write_manifest_hash
from tests.retrieval.refusal import refused

AGAIN = "Copy the artefact again from where it was made, or make it again."


class SampleManifest(Manifest):
    """A small artefact of one number."""

    kind: Literal["sample"] = "sample"
    format_version: Literal[2] = 2
    number: int


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    folder = tmp_path / "sample"
    folder.mkdir()
    (folder / "a.bin").write_bytes(bytes(range(256)) * 10)
    (folder / "b.txt").write_bytes(b"second file")
    SampleManifest(number=7, files=record_files(folder, ["a.bin", "b.txt"])).write(folder)
    return folder


def change_manifest(folder: Path, **changes: object) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    write_manifest_hash(path)


def test_a_manifest_round_trip_keeps_everything(sample: Path) -> None:
    manifest = SampleManifest.read(sample)
    assert (manifest.kind, manifest.format_version, manifest.number) == ("sample", 2, 7)
    assert manifest.sightfix_version == __version__
    assert manifest.created_at.utcoffset() is not None
    assert manifest.files["b.txt"] == FileRecord(sha256=hashlib.sha256(b"second file").hexdigest(), size=11)
    manifest.write(sample)
    assert SampleManifest.read(sample) == manifest
    verify_files(sample, manifest.files)


def test_a_missing_manifest_is_refused(tmp_path: Path) -> None:
    text = f"{tmp_path}: there is no readable manifest.json (No such file or directory). Give the folder of a sample."
    with refused(ArtefactError, text, "artefact_damaged"):
        SampleManifest.read(tmp_path)
    with refused(BundleError, text, "bundle_damaged"):
        SampleManifest.read(tmp_path, BundleError)


def test_an_unknown_format_version_is_refused(sample: Path) -> None:
    change_manifest(sample, format_version=3)
    text = (
        f"{sample / 'manifest.json'}: format version 3 is unknown to sightfix {__version__} (it reads 2). "
        "Install a matching sightfix, or make the sample again with this one."
    )
    with refused(ArtefactError, text, "artefact_damaged"):
        SampleManifest.read(sample)


def test_a_later_format_is_named_before_its_new_fields(sample: Path) -> None:
    change_manifest(sample, format_version=3, colour="new")
    with pytest.raises(ArtefactError, match="format version 3 is unknown"):
        SampleManifest.read(sample)


def test_another_kind_is_refused(sample: Path) -> None:
    change_manifest(sample, kind="bundle")
    text = f"{sample / 'manifest.json'}: this is a bundle, not a sample."
    with refused(ArtefactError, text, "artefact_damaged"):
        SampleManifest.read(sample)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"number": "many"}, "number (Input should be a valid integer, unable to parse string as an integer)"),
        ({"colour": "red"}, "colour (Extra inputs are not permitted)"),
        ({"kind": None}, "kind (Input should be a valid string)"),
        (
            {"files": {"a.bin": {"sha256": "abc", "size": 1}}},
            "files.a.bin.sha256 (String should match pattern '^[0-9a-f]{64}$')",
        ),
        (
            {"files": {"a.bin": {"sha256": "0" * 64, "size": -1}}},
            "files.a.bin.size (Input should be greater than or equal to 0)",
        ),
    ],
)
def test_a_manifest_with_a_wrong_value_is_refused_by_name(sample: Path, changes: dict, reason: str) -> None:
    change_manifest(sample, **changes)
    text = f"{sample / 'manifest.json'}: the manifest is damaged at {reason}. {AGAIN}"
    with refused(ArtefactError, text, "artefact_damaged"):
        SampleManifest.read(sample)


@pytest.mark.parametrize("name", ["../a.bin", "/etc/passwd", "a/../../b", "", "a//b", "./a", "a\\b", "a\0b", "a\nb"])
def test_a_manifest_names_no_file_outside_its_folder(sample: Path, name: str) -> None:
    change_manifest(sample, files={name: {"sha256": "0" * 64, "size": 1}})
    with pytest.raises(ArtefactError, match="is no name of a file below the artefact's folder"):
        SampleManifest.read(sample)


def test_a_manifest_may_name_files_in_subfolders(sample: Path) -> None:
    change_manifest(sample, files={"describer/1/model.onnx": {"sha256": "0" * 64, "size": 1}})
    assert list(SampleManifest.read(sample).files) == ["describer/1/model.onnx"]


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"[]"])
def test_a_manifest_that_is_no_json_object_is_refused(sample: Path, content: bytes) -> None:
    (sample / "manifest.json").write_bytes(content)
    with pytest.raises(ArtefactError) as caught:
        SampleManifest.read(sample)
    assert str(caught.value).startswith(f"{sample / 'manifest.json'}: the manifest is damaged at the file (")
    assert str(caught.value).endswith(f"). {AGAIN}")


def test_a_missing_file_is_refused(sample: Path) -> None:
    (sample / "a.bin").unlink()
    text = f"{sample / 'a.bin'}: the file cannot be read (No such file or directory). {AGAIN}"
    with refused(ArtefactError, text, "artefact_damaged"):
        verify_files(sample, SampleManifest.read(sample).files)


@pytest.mark.parametrize("size", [0, 2559, 2561])
def test_a_shorter_or_longer_file_is_refused(sample: Path, size: int) -> None:
    os.truncate(sample / "a.bin", size)
    text = f"{sample / 'a.bin'}: the file has {size} bytes, its manifest says 2560. {AGAIN}"
    with refused(ArtefactError, text, "artefact_damaged"):
        verify_files(sample, SampleManifest.read(sample).files)


@pytest.mark.parametrize("place", [0, 1234, 2559])
def test_a_flipped_byte_is_refused(sample: Path, place: int) -> None:
    data = bytearray((sample / "a.bin").read_bytes())
    before = hashlib.sha256(data).hexdigest()
    data[place] ^= 1
    (sample / "a.bin").write_bytes(data)
    text = (
        f"{sample / 'a.bin'}: the file is damaged: its SHA-256 is {hashlib.sha256(data).hexdigest()[:12]}…, "
        f"its manifest says {before[:12]}…. {AGAIN}"
    )
    with refused(BundleError, text, "bundle_damaged"):
        verify_files(sample, SampleManifest.read(sample).files, error_type=BundleError)


def test_only_the_named_files_are_verified(sample: Path) -> None:
    (sample / "a.bin").unlink()
    verify_files(sample, SampleManifest.read(sample).files, names=["b.txt"])


def test_hash_file_is_the_sha256_of_the_standard(tmp_path: Path) -> None:
    write_flushed(tmp_path / "abc", b"abc")
    assert hash_file(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_replaced_file_has_the_new_content_and_no_companion(tmp_path: Path) -> None:
    path = tmp_path / "CURRENT"
    replace_file(path, b"one\n")
    replace_file(path, b"two\n")
    assert path.read_bytes() == b"two\n"
    assert [entry.name for entry in tmp_path.iterdir()] == ["CURRENT"]


def test_a_file_that_cannot_be_replaced_stays_and_leaves_no_companion(tmp_path: Path) -> None:
    (tmp_path / "CURRENT").write_bytes(b"old")
    (tmp_path / ".CURRENT.tmp").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device"):
        replace_file(tmp_path / "CURRENT", b"new")
    assert (tmp_path / "CURRENT").read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["CURRENT"]


def test_a_folder_gets_its_name_with_everything_in_it(sample: Path, tmp_path: Path) -> None:
    rename_into_place(sample, tmp_path / "final")
    assert not sample.exists()
    verify_files(tmp_path / "final", SampleManifest.read(tmp_path / "final").files)


SPACE = "Free some space or choose another folder, then run the command again; nothing was published"
IN_THE_WAY = "Choose another folder: a file has its name, or that of a folder above it"


@pytest.mark.parametrize(
    ("number", "reason", "remedy"),
    [
        (errno.ENOSPC, "No space left on device", SPACE),
        (errno.EDQUOT, "Disk quota exceeded", SPACE),
        (errno.EACCES, "Permission denied", "Choose a folder you may write to"),
        (errno.EPERM, "Operation not permitted", "Choose a folder you may write to"),
        (errno.EROFS, "Read-only file system", "Choose a folder on a writable disk"),
        (errno.ENOTDIR, "Not a directory", IN_THE_WAY),
        (errno.EEXIST, "File exists", IN_THE_WAY),
    ],
)
def test_a_disk_that_refuses_is_an_error_with_a_remedy(number: int, reason: str, remedy: str) -> None:
    text = f"indexes/town: writing failed ({reason}). {remedy}."
    with refused(StorageError, text, "storage"), storage_errors(Path("indexes/town")):
        raise OSError(number, "words of a library")


def test_other_system_errors_are_not_dressed_up(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="Input/output error") as caught, storage_errors(tmp_path):
        raise OSError(errno.EIO, "Input/output error")
    assert not isinstance(caught.value, StorageError)
