"""The filter again, dense and in loops, straight from the formulas: what the fast one is held against."""

import math

import numpy as np

from retrieval.geo import Position, haversine_m, to_local_metres
from retrieval.tracking import Displacement, Distance, Odometry, PlaceMap, Speed, TrackSettings


def likeness_of(rows: list[int], scores: list[float], places: PlaceMap, settings: TrackSettings) -> list[float]:
    """How far matches speak for each of all places."""
    best = sorted(zip(scores, rows, strict=True), key=lambda pair: -pair[0])[: settings.max_matches]
    likeness = [0.0] * places.count
    whole = sum(math.exp((score - best[0][0]) / settings.score_scale) for score, _ in best)
    for score, row in best:
        share = math.exp((score - best[0][0]) / settings.score_scale) / whole
        for place in range(places.count):
            distance = metres(places, int(places.place_of[row]), place)
            if distance <= 3 * settings.match_std_m:
                likeness[place] += share * math.exp(-(distance**2) / (2 * settings.match_std_m**2))
    return likeness


def predicted(
    weights: list[float], places: PlaceMap, seconds: float, odometry: Odometry | None, settings: TrackSettings
) -> list[float]:
    """Weights of the held places after a motion; what is missing to 1 is lost."""
    doubt = 1 - math.exp(-settings.jump_rate * seconds)
    moved = [0.0] * places.count
    for source in range(places.count):
        likely = [kernel(places, source, target, seconds, odometry, settings) for target in range(places.count)]
        if sum(likely) == 0.0:
            continue
        stays = min(1.0, max(likely) / 0.1)
        for target in range(places.count):
            moved[target] += (1 - doubt) * weights[source] * stays * likely[target] / sum(likely)
    return moved


def observed(
    weights: list[float], likeness: list[float], settings: TrackSettings, freshness: float = 1.0
) -> list[float]:
    """Weights of the held places after a frame; what is missing to 1 is lost."""
    lost, miss, count = 1 - sum(weights), settings.miss_share, len(weights)
    whole = sum(likeness)
    contrast = min(settings.contrast, (1 - miss) * count / whole)
    new = []
    for weight, alike in zip(weights, likeness, strict=True):
        seed = lost * (1 - miss**freshness) * alike / whole
        new.append(weight * (miss + contrast * alike) ** freshness + seed)
    total = sum(new) + lost * miss**freshness
    return [weight / total for weight in new]


def kernel(
    places: PlaceMap, source: int, target: int, seconds: float, odometry: Odometry | None, settings: TrackSettings
) -> float:
    """How likely the way between two places is beside the likeliest way."""
    spread = places.spacing_m**2 / 6
    distance = metres(places, source, target)
    if odometry is None:
        if distance > settings.max_speed_mps * seconds + 4 * math.sqrt(spread):
            return 0.0
        return math.exp(-(distance**2) / (2 * ((settings.speed_mps * seconds) ** 2 + spread)))
    if isinstance(odometry, Displacement):
        from_here = Position(float(places.lat[source]), float(places.lon[source]))
        (way,) = to_local_metres(from_here, [places.lat[target]], [places.lon[target]])
        variance = odometry.std_m**2 + spread
        if distance > math.hypot(odometry.east_m, odometry.north_m) + 4 * math.sqrt(variance):
            return 0.0
        away2 = (way[0] - odometry.east_m) ** 2 + (way[1] - odometry.north_m) ** 2
        return math.exp(-away2 / (2 * variance))
    if isinstance(odometry, Speed):
        odometry = Distance(odometry.mps * seconds, odometry.std_mps * seconds)
    variance = odometry.std_m**2 + spread
    travelled = abs(odometry.metres)
    if distance > travelled + 4 * math.sqrt(variance):
        return 0.0
    return math.exp(-((distance - travelled) ** 2) / (2 * variance))


def metres(places: PlaceMap, one: int, other: int) -> float:
    return float(haversine_m(places.lat[one], places.lon[one], places.lat[other], places.lon[other]))


def dense(track_places: np.ndarray, weights: np.ndarray, count: int) -> np.ndarray:
    """Sparse weights as an array over all places."""
    whole = np.zeros(count)
    whole[track_places] = weights
    return whole
