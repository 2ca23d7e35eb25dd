"""Write a bundle: graphs, model card and manifest, whole or not at all."""

import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import onnx

from export.model_card import model_card
from retrieval.artefact import MANIFEST_NAME, record_files, rename_into_place, storage_errors, write_flushed
from retrieval.bundle import (
    Bundle,
    BundleManifest,
    ParityReport,
    Precision,
    PrecisionReport,
    Provenance,
    WhiteningReport,
    bundle_fingerprint,
    open_bundle,
)
from retrieval.errors import ParameterError, StorageError
from retrieval.images import Preprocessing

GRAPH_NAMES: dict[Precision, str] = {"fp32": "model.onnx", "fp16": "model.fp16.onnx", "int8": "model.int8.onnx"}
MODEL_CARD_NAME = "MODEL_CARD.md"


@dataclass(frozen=True)
class BundleContent:
    """Everything a bundle states, before it is written."""

    name: str
    graphs: dict[Precision, onnx.ModelProto]
    preprocessing: Preprocessing
    descriptor_dim: int
    provenance: Provenance
    parity: ParityReport
    licence: str
    weight_storage: Literal["fp32", "fp16"] = "fp32"
    whitening: WhiteningReport | None = None
    precisions: Mapping[Precision, PrecisionReport] = field(default_factory=dict)
    camera_model_input: Preprocessing | None = None

    def card(self) -> str:
        """The model card, Markdown."""
        return model_card(
            name=self.name,
            provenance=self.provenance,
            preprocessing=self.preprocessing,
            camera_model_input=self.camera_model_input,
            descriptor_dim=self.descriptor_dim,
            weight_storage=self.weight_storage,
            licence=self.licence,
            parity=self.parity,
            whitening=self.whitening,
            precisions=self.precisions,
        )


def write_bundle(folder: Path, content: BundleContent, *, replace: bool = False) -> Bundle:
    """Write a bundle beside its final place, then rename it.

    Args:
        folder: where the bundle shall be.
        content: what it holds.
        replace: whether a bundle that is already there may be replaced.

    Raises:
        ParameterError: the folder exists, and either `replace` is not set or it is not a bundle's.
        StorageError: the disk refuses; nothing is left behind.
    """
    check_free(folder, replace=replace)
    with storage_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".tmp-{folder.name}-", dir=folder.parent))
        replaced = temporary.with_name(f"{temporary.name}-replaced")
        try:
            _write_files(temporary, content)
            temporary.chmod(0o755)
            if folder.exists():
                folder.rename(replaced)
            rename_into_place(temporary, folder)
        finally:
            if replaced.exists() and not folder.exists():
                replaced.rename(folder)
            for leftover in (temporary, replaced):
                shutil.rmtree(leftover, ignore_errors=True)
    return open_bundle(folder)


def check_free(folder: Path, *, replace: bool) -> None:
    """Refuse a folder that a bundle cannot be written to, before any work is done for it.

    Raises:
        ParameterError: the folder exists, and either `replace` is not set or it is not a bundle's.
        StorageError: the nearest folder above it that exists cannot be written to.
    """
    if folder.exists() and not replace:
        raise ParameterError(
            "the folder exists already", where=str(folder), remedy="Choose another, or add --replace to replace it"
        )
    if folder.exists() and not (folder / MANIFEST_NAME).is_file():
        raise ParameterError(
            "the folder exists and is not a bundle", where=str(folder), remedy="Choose another, or remove it"
        )
    above = next(parent for parent in folder.absolute().parents if parent.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise StorageError(
            "a bundle cannot be written there", where=str(above), remedy="Choose a folder you may write to"
        )


def _write_files(temporary: Path, content: BundleContent) -> None:
    names = {precision: GRAPH_NAMES[precision] for precision in content.graphs}
    for precision, model in content.graphs.items():
        write_flushed(temporary / names[precision], model.SerializeToString(deterministic=True))
    write_flushed(temporary / MODEL_CARD_NAME, content.card().encode())
    files = record_files(temporary, [*names.values(), MODEL_CARD_NAME])
    BundleManifest.model_validate(
        {
            "name": content.name,
            "descriptor_dim": content.descriptor_dim,
            "preprocessing": content.preprocessing,
            "graphs": names,
            "weight_storage": content.weight_storage,
            "provenance": content.provenance,
            "parity": content.parity,
            "whitening": content.whitening,
            "precisions": dict(content.precisions),
            "camera_model_input": content.camera_model_input,
            "licence": content.licence,
            "files": files,
            "fingerprint": bundle_fingerprint(files[names["fp32"]], content.preprocessing),
        }
    ).write(temporary)
