import hashlib
from pathlib import Path

import pytest

from retrieval import __version__
from retrieval.bundle import Bundle, bundle_fingerprint, bundle_folder, default_bundle_folder, open_bundle
from retrieval.errors import BundleError
from tests.retrieval.other_bundle import change_manifest, copy_bundle, flip_byte, record_again, write_other_bundle
from tests.retrieval.refusal import refused

AGAIN = "Copy the artefact again from where it was made, or make it again."


def test_the_shipped_bundle_opens_by_default(bundle: Bundle) -> None:
    assert bundle.folder == default_bundle_folder()
    assert bundle.name == bundle.manifest.name
    assert bundle.graph_path("fp32").is_file()
    assert set(bundle.manifest.files) == {"model.onnx", "MODEL_CARD.md"}


def test_a_copied_bundle_is_the_same_bundle(bundle: Bundle, tmp_path: Path) -> None:
    copied = open_bundle(copy_bundle(bundle, tmp_path / "copy"))
    assert copied.fingerprint == bundle.fingerprint
    assert copied.manifest == bundle.manifest


def test_the_fingerprint_is_the_hash_of_graph_and_preprocessing(bundle: Bundle) -> None:
    graph = hashlib.sha256(bundle.graph_path("fp32").read_bytes()).hexdigest()
    preprocessing = bundle.preprocessing.model_dump_json()
    assert bundle.fingerprint == hashlib.sha256(f"{graph}\n{preprocessing}".encode()).hexdigest()


@pytest.mark.parametrize(
    "change", [{"fit": "pad"}, {"filter": "bilinear"}, {"width": 32}, {"jpeg_scaled_decode": False}]
)
def test_another_preprocessing_is_another_fingerprint(bundle: Bundle, change: dict) -> None:
    graph = bundle.manifest.files["model.onnx"]
    other = bundle_fingerprint(graph, bundle.preprocessing.model_copy(update=change))
    assert other != bundle.fingerprint


def test_a_second_bundle_can_be_made_with_its_own_fingerprint(bundle: Bundle, tmp_path: Path) -> None:
    other = write_other_bundle(bundle, tmp_path / "other")
    assert other.fingerprint != bundle.fingerprint
    assert other.preprocessing != bundle.preprocessing


def test_a_precision_the_bundle_lacks_is_refused(bundle: Bundle) -> None:
    text = (
        f"{bundle.folder}: the bundle has no int8 graph. Choose among fp32; or make one that has it, and index with "
        f"that: sightfix export {bundle.folder} --precision int8 --photos PHOTOS --out FOLDER."
    )
    with refused(BundleError, text, "precision_not_found"):
        bundle.graph_path("int8")


def test_no_bundle_is_refused(tmp_path: Path) -> None:
    text = f"{tmp_path}: there is no readable manifest.json (No such file or directory). Give the folder of a bundle."
    with refused(BundleError, text, "bundle_damaged"):
        open_bundle(tmp_path)


def test_an_unknown_format_version_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    folder = copy_bundle(bundle, tmp_path / "copy")
    change_manifest(folder, {"format_version": 3})
    text = (
        f"{folder / 'manifest.json'}: format version 3 is unknown to sightfix {__version__} (it reads 1 and 2). "
        "Install a matching sightfix, or make the bundle again with this one."
    )
    with refused(BundleError, text, "bundle_damaged"):
        open_bundle(folder)


def test_a_version_without_a_bundle_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    folder = copy_bundle(bundle, tmp_path / "copy")
    change_manifest(folder, {"kind": "place-index"})
    text = (
        f"{folder}: this version of a place index holds no bundle. "
        "Name the folder of the bundle that it was described with."
    )
    with refused(BundleError, text, "bundle_damaged"):
        open_bundle(folder)


def test_another_artefact_is_not_a_bundle(bundle: Bundle, tmp_path: Path) -> None:
    folder = copy_bundle(bundle, tmp_path / "copy")
    change_manifest(folder, {"kind": "checkpoint"})
    with refused(BundleError, f"{folder / 'manifest.json'}: this is a checkpoint, not a bundle.", "bundle_damaged"):
        open_bundle(folder)


def test_the_shipped_bundle_is_called_default(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert bundle_folder(None) == bundle_folder(Path("default")) == bundle.folder
    monkeypatch.chdir(tmp_path)
    Path("default").mkdir()
    assert bundle_folder(Path("default")) == Path("default"), "an own folder of that name"


@pytest.mark.parametrize("name", ["model.onnx", "MODEL_CARD.md"])
def test_a_flipped_byte_in_any_file_is_refused(bundle: Bundle, tmp_path: Path, name: str) -> None:
    folder = copy_bundle(bundle, tmp_path / "copy")
    flip_byte(folder / name)
    found = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    text = (
        f"{folder / name}: the file is damaged: its SHA-256 is {found[:12]}…, "
        f"its manifest says {bundle.manifest.files[name].sha256[:12]}…. {AGAIN}"
    )
    with refused(BundleError, text, "bundle_damaged"):
        open_bundle(folder)


@pytest.mark.parametrize("name", ["model.onnx", "MODEL_CARD.md"])
def test_a_truncated_file_is_refused(bundle: Bundle, tmp_path: Path, name: str) -> None:
    folder = copy_bundle(bundle, tmp_path / "copy")
    size = bundle.manifest.files[name].size
    (folder / name).write_bytes((folder / name).read_bytes()[:-1])
    text = f"{folder / name}: the file has {size - 1} bytes, its manifest says {size}. {AGAIN}"
    with refused(BundleError, text, "bundle_damaged"):
        open_bundle(folder)


@pytest.mark.parametrize("name", ["model.onnx", "MODEL_CARD.md"])
def test_a_missing_file_is_refused(bundle: Bundle, tmp_path: Path, name: str) -> None:
    folder = copy_bundle(bundle, tmp_path / "copy")
    (folder / name).unlink()
    text = f"{folder / name}: the file cannot be read (No such file or directory). {AGAIN}"
    with refused(BundleError, text, "bundle_damaged"):
        open_bundle(folder)


def test_a_damaged_manifest_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    folder = copy_bundle(bundle, tmp_path / "copy")
    flip_byte(folder / "manifest.json", 0)
    with pytest.raises(BundleError, match="the manifest is damaged at the file"):
        open_bundle(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"fingerprint": "0" * 64},
        {"files/model.onnx/sha256": "0" * 64},
        {"preprocessing/fit": "pad"},
        {"preprocessing/filter": "bilinear"},
        {"preprocessing/height": 32},
        {"preprocessing/width": 32},
        {"preprocessing/jpeg_scaled_decode": False},
    ],
)
def test_a_manifest_whose_fingerprint_does_not_fit_is_refused(bundle: Bundle, tmp_path: Path, change: dict) -> None:
    folder = copy_bundle(bundle, tmp_path / "copy")
    change_manifest(folder, change)
    with pytest.raises(BundleError) as caught:
        open_bundle(folder)
    assert str(caught.value).startswith(
        f"{folder / 'manifest.json'}: the manifest is damaged at the file "
        "(Value error, the fingerprint is not that of graph and preprocessing ("
    )
    assert str(caught.value).endswith(f"…)). {AGAIN}")
    assert caught.value.code == "bundle_damaged"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"graphs": {}}, "the file (Value error, a bundle needs an fp32 graph)"),
        ({"graphs/fp32": "other.onnx"}, "the file (Value error, graphs ['other.onnx'] are not among the files)"),
        ({"graphs/fp8": "model.onnx"}, "graphs.fp8.[key] (Input should be 'fp32', 'fp16' or 'int8')"),
        ({"fingerprint": "abc"}, "fingerprint (String should match pattern '^[0-9a-f]{64}$')"),
        ({"descriptor_dim": 0}, "descriptor_dim (Input should be greater than or equal to 1)"),
        ({"preprocessing/exif_orientation": False}, "preprocessing.exif_orientation (Input should be True)"),
        ({"preprocessing/sharpen": 1}, "preprocessing.sharpen (Extra inputs are not permitted)"),
    ],
)
def test_a_manifest_that_states_no_bundle_is_refused(bundle: Bundle, tmp_path: Path, change: dict, reason: str) -> None:
    folder = copy_bundle(bundle, tmp_path / "copy")
    change_manifest(folder, change)
    text = f"{folder / 'manifest.json'}: the manifest is damaged at {reason}. {AGAIN}"
    with refused(BundleError, text, "bundle_damaged"):
        open_bundle(folder)


def test_a_graph_changed_on_purpose_is_another_bundle(bundle: Bundle, tmp_path: Path) -> None:
    folder = copy_bundle(bundle, tmp_path / "copy")
    flip_byte(folder / "model.onnx")
    record_again(folder, "model.onnx")
    assert open_bundle(folder).fingerprint != bundle.fingerprint
