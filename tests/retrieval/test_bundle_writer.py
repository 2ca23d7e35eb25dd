import errno
import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from retrieval.bundle import ParityReport, Provenance, bundle_fingerprint, open_bundle
from retrieval.bundle import writer as bundle_writer
from retrieval.bundle.writer import BundleContent, write_bundle
from retrieval.describer import Describer
from retrieval.errors import ParameterError, StorageError
from retrieval.images import Preprocessing
from tests.retrieval.mean_colour import mean_colour_graph
from tests.retrieval.refusal import refused

PREPROCESSING = Preprocessing(height=16, width=32)
CONTENT = BundleContent(
    name="mean colour",
    graphs={"fp32": mean_colour_graph(16, 32)},
    preprocessing=PREPROCESSING,
    descriptor_dim=3,
    provenance=Provenance(
        backbone="none", aggregation="mean", weights="none", weights_licence="none", training_data="none"
    ),
    parity=ParityReport(reference="paper", images=0, min_cosine=1.0),
    licence="Apache-2.0",
)


def test_a_written_bundle_opens_and_describes(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "a" / "b", CONTENT)
    assert bundle.folder == tmp_path / "a" / "b"
    assert {path.name for path in bundle.folder.iterdir()} == {
        "model.onnx",
        "MODEL_CARD.md",
        "manifest.json",
        "manifest.sha256",
    }
    assert {path.name for path in bundle.folder.parent.iterdir()} == {"b"}
    assert bundle.manifest.name == "mean colour"
    assert bundle.manifest.graphs == {"fp32": "model.onnx"}
    graph = bundle.manifest.files["model.onnx"]
    assert graph.sha256 == hashlib.sha256((bundle.folder / "model.onnx").read_bytes()).hexdigest()
    assert bundle.fingerprint == bundle_fingerprint(graph, PREPROCESSING)
    red = np.zeros((2, 16, 32, 3), np.uint8)
    red[..., 0] = 9
    np.testing.assert_allclose(Describer(bundle, threads=1).describe(red), [[1, 0, 0]] * 2)


def test_other_users_may_read_a_bundle(tmp_path: Path) -> None:
    assert write_bundle(tmp_path / "b", CONTENT).folder.stat().st_mode & 0o777 == 0o755


def test_equal_content_has_an_equal_fingerprint(tmp_path: Path) -> None:
    assert write_bundle(tmp_path / "a", CONTENT).fingerprint == write_bundle(tmp_path / "b", CONTENT).fingerprint


def test_every_precision_gets_its_file(tmp_path: Path) -> None:
    graphs = {precision: mean_colour_graph(16, 32) for precision in ("fp32", "fp16", "int8")}
    bundle = write_bundle(tmp_path / "b", replace(CONTENT, graphs=graphs))
    assert bundle.graph_path("fp16").name == "model.fp16.onnx"
    assert bundle.graph_path("int8").name == "model.int8.onnx"
    assert set(bundle.manifest.files) == {"model.onnx", "model.fp16.onnx", "model.int8.onnx", "MODEL_CARD.md"}


def test_an_existing_folder_is_refused_and_stays(tmp_path: Path) -> None:
    before = write_bundle(tmp_path / "b", CONTENT).manifest
    text = f"{tmp_path / 'b'}: the folder exists already. Choose another, or add --replace to replace it."
    with refused(ParameterError, text, "validation_error"):
        write_bundle(tmp_path / "b", replace(CONTENT, name="other"))
    assert open_bundle(tmp_path / "b").manifest == before


def test_a_bundle_may_be_replaced(tmp_path: Path) -> None:
    write_bundle(tmp_path / "b", CONTENT)
    assert write_bundle(tmp_path / "b", replace(CONTENT, name="other"), replace=True).name == "other"
    assert write_bundle(tmp_path / "new", CONTENT, replace=True).name == "mean colour"
    assert {path.name for path in tmp_path.iterdir()} == {"b", "new"}


def test_a_folder_that_is_no_bundle_is_never_replaced(tmp_path: Path) -> None:
    """`python -m export.default_bundle --out ~/photos`."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "holiday.jpg").write_bytes(b"irreplaceable")
    text = f"{tmp_path / 'photos'}: the folder exists and is not a bundle. Choose another, or remove it."
    with refused(ParameterError, text, "validation_error"):
        write_bundle(tmp_path / "photos", CONTENT, replace=True)
    assert (tmp_path / "photos" / "holiday.jpg").read_bytes() == b"irreplaceable"


@pytest.mark.parametrize("replaced", [False, True])
def test_content_that_is_no_bundle_leaves_nothing_behind(tmp_path: Path, replaced: bool) -> None:
    if replaced:
        write_bundle(tmp_path / "b", CONTENT)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ValidationError):
        write_bundle(tmp_path / "b", replace(CONTENT, descriptor_dim=0), replace=True)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert {path.name for path in tmp_path.iterdir()} == ({"b"} if replaced else set())


@pytest.mark.parametrize("replaced", [False, True])
def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, replaced: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if replaced:
        write_bundle(tmp_path / "b", CONTENT)
    before = {path.name for path in tmp_path.iterdir()}

    def full(path: Path, _: bytes) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(bundle_writer, "write_flushed", full)
    text = (
        f"{tmp_path / 'b'}: writing failed (No space left on device). "
        "Free some space or choose another folder, then run the command again; nothing was published."
    )
    with refused(StorageError, text, "storage"):
        write_bundle(tmp_path / "b", CONTENT, replace=True)
    assert {path.name for path in tmp_path.iterdir()} == before
    if replaced:
        assert open_bundle(tmp_path / "b").name == "mean colour"
