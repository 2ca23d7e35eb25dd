"""Versions of made-up descriptors at made-up positions: what the stores are compared over."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from index_builder.index_design import IndexDesign
from index_builder.publish import draft_version
from index_builder.version_writer import VersionContent, write_version
from retrieval.bundle import Bundle
from retrieval.geo import GeoPrior, haversine_m
from retrieval.index.manifest import Source
from retrieval.index.place_index import PlaceIndex
from retrieval.index.reference_table import REFERENCE_SCHEMA
from tests.retrieval.scattered import cluster, everywhere
from tests.whitened_index import whiten

# On both sides of the antimeridian, around a pole, in the middle of a continent, and everywhere.
PLACES = [(0.0, 180.0), (0.0, -179.999), (90.0, 0.0), (48.0, 11.0)]

PRIORS = [
    GeoPrior(48.0, 11.0, 800.0),
    GeoPrior(0.0, 179.9999, 3_000.0),
    GeoPrior(0.0, -180.0, 500.0),
    GeoPrior(89.999, 120.0, 2_000.0),
    GeoPrior(-89.9, 0.0, 50_000.0),  # nobody is there
    GeoPrior(10.0, 10.0, 12_000_000.0),  # more than half of the Earth
    GeoPrior(0.0, 0.0, 21_000_000.0),
]


@dataclass(frozen=True)
class MadeIndex:
    """A version, and what went into it, in the order of its rows."""

    index: PlaceIndex
    descriptors: np.ndarray
    lat: np.ndarray
    lon: np.ndarray

    def best(self, query: np.ndarray, k: int, prior: GeoPrior | None) -> list[float]:
        """The k best cosines by looking at every row, falling; fewer where fewer lie inside."""
        inside = np.ones(len(self.lat), bool)
        if prior is not None:
            inside = haversine_m(prior.lat, prior.lon, self.lat, self.lon) <= prior.radius_m
        return sorted((self.descriptors[inside] @ query).tolist(), reverse=True)[:k]


def make_index(indexes: Path, bundle: Bundle, *, seed: int, count: int = 120, whitened: int = 0) -> MadeIndex:
    """Publish a version of the index ``town`` in a folder: `count` rows in each of five places."""
    positions = np.concatenate(
        [*(cluster(place, count, 600.0, seed) for place in PLACES), everywhere(count, seed)], axis=0
    )
    draw = np.random.default_rng(seed)
    descriptors = draw.normal(size=(len(positions), bundle.descriptor_dim)).astype(np.float32)
    descriptors /= np.linalg.norm(descriptors, axis=1, keepdims=True)
    columns = {
        "id": [f'photos/{seed}/it\'s "{row}" ü.jpg' for row in range(len(positions))],
        "path": [f"photos/{row}.jpg" for row in range(len(positions))],
        "lat": positions[:, 0],
        "lon": positions[:, 1],
        "altitude_m": [None if row % 3 else float(row) for row in range(len(positions))],
        "heading_deg": [float(row % 360) for row in range(len(positions))],
        "captured_at": ["2026-01-02T03:04:05+01:00"] * len(positions),
        "session": [f"walk {row % 4}" for row in range(len(positions))],
        "metadata": [None if row % 2 else '{"light": "night"}' for row in range(len(positions))],
        "content_sha256": [None] * len(positions),
    }
    with draft_version(indexes, "town") as draft:
        content = VersionContent(
            name="town",
            version=draft.version,
            bundle=bundle,
            source=Source(spec="test:made", root=str(indexes)),
            table=pa.table(columns, REFERENCE_SCHEMA),
            described=lambda rows: descriptors[rows],
        )
        write_version(draft.folder, content, IndexDesign(storage="fp32", calibrate=False))
        draft.name_version()
        folder = draft.published_folder
        draft.make_current()
    index = whiten(folder, whitened) if whitened else PlaceIndex.open(folder)
    return MadeIndex(index, index.descriptors(np.arange(index.count)), index.lat, index.lon)
