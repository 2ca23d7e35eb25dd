"""An answer as GeoJSON (RFC 7946): positions are [longitude, latitude]."""

import json
import math
from typing import Any, Final

from retrieval.answer import FixAnswer, LocalizeAnswer
from retrieval.geo import Position, from_local_metres

MEDIA_TYPE: Final = "application/geo+json"
_CORNERS: Final = 64


def geojson(answer: LocalizeAnswer) -> dict[str, Any]:
    """A FeatureCollection: the fix as a point, its radius as a polygon, and every match as a point.

    What else the answer says (status, model, index, timings) is a foreign member of the collection, `sightfix`.
    """
    said = answer.model_dump(mode="json", exclude={"fix", "matches"})
    features = [] if answer.fix is None else [_fix_point(answer.fix), *_circle(answer.fix)]
    for match in answer.matches:
        properties = match.model_dump(mode="json", exclude={"lat", "lon"})
        features.append(_feature("match", {"type": "Point", "coordinates": [match.lon, match.lat]}, properties))
    return {"type": "FeatureCollection", "features": features, "sightfix": said}


def text(answer: LocalizeAnswer) -> str:
    """`geojson` as JSON text."""
    return json.dumps(geojson(answer), allow_nan=False)


def _fix_point(fix: FixAnswer) -> dict[str, Any]:
    properties = fix.model_dump(mode="json", exclude={"lat", "lon"})
    return _feature("fix", {"type": "Point", "coordinates": [fix.lon, fix.lat]}, properties)


def _circle(fix: FixAnswer) -> list[dict[str, Any]]:
    """The circle that holds the truth 68 % of the time; none around a pole, nor larger than a hemisphere."""
    centre = Position(fix.lat, fix.lon)
    if not 0 < fix.radius_m < 1e6 or abs(fix.lat) + fix.radius_m / 110_000 > 89.9:
        return []
    # Counter-clockwise, as RFC 7946 wants outer rings, and closed.
    angles = [math.tau * corner / _CORNERS for corner in range(_CORNERS)]
    corners = [
        from_local_metres(centre, fix.radius_m * math.cos(angle), fix.radius_m * math.sin(angle)) for angle in angles
    ]
    # Longitudes beyond 180 rather than a ring that runs around the world.
    ring = [[fix.lon + math.remainder(corner.lon - fix.lon, 360.0), corner.lat] for corner in corners]
    return [_feature("radius", {"type": "Polygon", "coordinates": [[*ring, ring[0]]]}, {"radius_m": fix.radius_m})]


def _feature(kind: str, geometry: dict[str, Any], properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Feature", "geometry": geometry, "properties": {"kind": kind, **properties}}
