"""A version as it was written when an index could whiten: its rows whitened, and the map beside them."""

from pathlib import Path

import numpy as np

from retrieval.artefact import record_files
from retrieval.bundle.whitening import fit_whitening
from retrieval.index.manifest import WhiteningRecord
from retrieval.index.place_index import VECTORS_NAME, WHITENING_NAME, PlaceIndex, file_names
from retrieval.index.vectors.exact import ExactVectors
from retrieval.index.whitening import write_whitening

STRETCH = 3.0


def whiten(folder: Path, dim: int) -> PlaceIndex:
    """Whiten an exact version in its place.

    Args:
        folder: of the version.
        dim: numbers that its descriptors shall have.
    """
    index = PlaceIndex.open(folder)
    manifest = index.manifest
    descriptors = index.descriptors(np.arange(index.count))
    whitening = fit_whitening(descriptors, dim)
    vectors = ExactVectors.empty(dim, manifest.storage, whitening.apply(descriptors))
    vectors.add(whitening.apply(descriptors))
    with (folder / VECTORS_NAME).open("wb") as file:
        vectors.write(file.write)
    write_whitening(whitening, folder / WHITENING_NAME)
    record = WhiteningRecord(
        from_dim=manifest.descriptor_dim,
        power=whitening.power,
        explained=whitening.explained,
        fitted_on=index.count,
        score_stretch=STRETCH,
    )
    whitened = manifest.model_copy(
        update={"format_version": 2, "descriptor_dim": dim, "whitening": record, "score_spread": None}
    )
    whitened.model_copy(update={"files": record_files(folder, file_names(whitened))}).write(folder)
    return PlaceIndex.open(folder)
