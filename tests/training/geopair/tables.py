"""Photo tables laid out by hand, and what makes a pair, written down slowly."""

import numpy as np

from retrieval.geo import EARTH_RADIUS_M, haversine_m
from training.geopair import Float32Array, GeoPairs, Int64Array, PairBatch, PhotoTable
from training.recipe_settings import GeoPairSettings


def plane_table(metres, headings=None, sessions=None) -> PhotoTable:
    """Photos at (east, north) metres; by default of unknown heading, and each of its own session."""
    plane = np.asarray(metres, np.float64)
    count = len(plane)
    return PhotoTable(
        np.pad(plane, ((0, 0), (0, 1))) / EARTH_RADIUS_M,
        np.full(count, np.nan, np.float32) if headings is None else np.asarray(headings, np.float32),
        np.arange(count, dtype=np.int32) if sessions is None else np.asarray(sessions, np.int32),
    )


def town(seed: int, photos: int = 240, side_m: float = 400.0) -> PhotoTable:
    """Clusters of photos some metres apart, of three sessions and an unknown one, some without heading."""
    rng = np.random.default_rng(seed)
    centres = rng.uniform(0, side_m, (photos // 4, 2))
    metres = np.repeat(centres, 4, axis=0) + rng.normal(0, 4, (4 * len(centres), 2))
    headings = np.where(rng.random(len(metres)) < 0.1, np.nan, rng.uniform(0, 360, len(metres)))
    return plane_table(metres, headings, rng.integers(-1, 3, len(metres)))


def distances_m(table: PhotoTable) -> np.ndarray:
    return np.linalg.norm(table.points[:, None] - table.points[None], axis=-1) * EARTH_RADIUS_M


def positives_by_hand(table: PhotoTable, settings: GeoPairSettings, distances=None) -> list[set[int]]:
    """Every photo's allowed positives, one by one."""
    distances = distances_m(table) if distances is None else distances
    everyones = []
    for row in range(len(table)):
        same, other = set(), set()
        for near in range(len(table)):
            if near == row or distances[row, near] > settings.positive_radius_m + 1e-6:
                continue
            if settings.heading_window_deg is not None:
                turn = abs(float(table.headings_deg[row]) - float(table.headings_deg[near]))
                if np.isnan(turn) or min(turn, 360 - turn) > settings.heading_window_deg:
                    continue
            (other if table.sessions[row] != table.sessions[near] else same).add(near)
        if not settings.other_session_only:
            everyones.append(same | other)
        else:
            everyones.append(other or (same if settings.same_session_fallback else set()))
    return everyones


def geopairs(table: PhotoTable, settings: GeoPairSettings, **changes) -> GeoPairs:
    chosen = {"queries_per_batch": 8, "queries_per_epoch": 10_000, "seed": 0} | changes
    return GeoPairs(table, settings, **chosen)


def random_units(count: int, dim: int = 16, seed: int = 0) -> Float32Array:
    descriptors = np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)
    return descriptors / np.linalg.norm(descriptors, axis=1, keepdims=True)


def on_earth_m(lat: Float32Array, lon: Float32Array) -> np.ndarray:
    return haversine_m(lat[:, None], lon[:, None], lat[None], lon[None])


def photos_of(batch: PairBatch) -> Int64Array:
    mined = [] if batch.negatives is None else [batch.negatives.ravel()]
    return np.concatenate([batch.queries, batch.positives, *mined])
