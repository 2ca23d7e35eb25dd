"""A second bundle, and damage done to artefacts."""

import json
import shutil
from pathlib import Path
from typing import Any

from retrieval.artefact import FileRecord, hash_file
from retrieval.bundle import Bundle, BundleManifest, bundle_fingerprint, open_bundle
from retrieval.images import Preprocessing
from tests.manifest_hash import write_manifest_hash


def copy_bundle(bundle: Bundle, folder: Path) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copytree(bundle.folder, folder))


def write_other_bundle(bundle: Bundle, folder: Path, *, name: str = "other") -> Bundle:
    """The same graph with another preprocessing: descriptors that must not be compared with the first one's."""
    copy_bundle(bundle, folder)
    fit = "crop" if bundle.preprocessing.fit == "stretch" else "stretch"
    preprocessing = bundle.preprocessing.model_copy(update={"fit": fit})
    graph = bundle.manifest.files[bundle.manifest.graphs["fp32"]]
    fingerprint = bundle_fingerprint(graph, preprocessing)
    update = {"name": name, "preprocessing": preprocessing, "fingerprint": fingerprint}
    BundleManifest.model_validate({**bundle.manifest.model_dump(), **update}).write(folder)
    return open_bundle(folder)


def flip_byte(path: Path, place: int = -1) -> None:
    """Change one byte, by default in the middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if place < 0 else place] ^= 0x01
    path.write_bytes(data)


def change_manifest(folder: Path, change: dict[str, Any]) -> None:
    """Set values of a manifest, nested ones by keys such as ``files/model.onnx/size``."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    for key, value in change.items():
        *parents, last = key.split("/")
        place = manifest
        for parent in parents:
            place = place[parent]
        place[last] = value
    path.write_text(json.dumps(manifest))
    write_manifest_hash(path)


def record_again(folder: Path, name: str) -> None:
    """Make the manifest agree with a file that was changed on purpose; of a bundle's graph, the fingerprint too."""
    path = folder / name
    record = FileRecord(sha256=hash_file(path), size=path.stat().st_size)
    change_manifest(folder, {f"files/{name}": record.model_dump()})
    manifest = json.loads((folder / "manifest.json").read_text())
    if manifest["kind"] == "bundle" and manifest["graphs"]["fp32"] == name:
        preprocessing = Preprocessing.model_validate(manifest["preprocessing"])
        change_manifest(folder, {"fingerprint": bundle_fingerprint(record, preprocessing)})
