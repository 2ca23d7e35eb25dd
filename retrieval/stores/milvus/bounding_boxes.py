"""A geo prior as a filter that Milvus understands: boxes of latitudes and longitudes that hold the circle.

Milvus's own distances differ between its server (metres) and milvus-lite (degrees), so positions are compared as plain
numbers there, a little generously, and with the haversine here.
"""

import math
from typing import Final

from retrieval.geo import EARTH_RADIUS_M, GeoPrior

# 1 cm on the ground, and some more towards the poles: whoever lies on the border is decided here, not there.
_SLACK_DEG: Final = 1e-7


def filter_of(prior: GeoPrior) -> str:
    """The filter expression of a prior: every position inside it passes, and some beside it; "" lets all pass.

    The boxes are split at the antimeridian; a circle that holds a pole has all longitudes. Longitudes of references
    are in [-180, 180], whose two ends are the same meridian.
    """
    reach = prior.radius_m / EARTH_RADIUS_M
    low, high = (prior.lat + sign * math.degrees(reach) for sign in (-1.0, 1.0))
    parts = []
    if low > -90.0:
        parts.append(f"lat >= {_number(low - _SLACK_DEG)}")
    if high < 90.0:
        parts.append(f"lat <= {_number(high + _SLACK_DEG)}")
    if low > -90.0 and high < 90.0:
        # The meridians that touch the circle do so nearer to the pole than its centre lies.
        sine = math.sin(min(reach, math.pi / 2)) / math.cos(math.radians(prior.lat))
        if sine < 1.0:
            slack = _SLACK_DEG / math.cos(math.radians(prior.lat))
            parts += _longitudes(prior.lon, math.degrees(math.asin(sine)) + slack)
    return " and ".join(parts)


def _longitudes(centre: float, half: float) -> list[str]:
    if half >= 180.0:
        return []
    west, east = _wrapped(centre - half), _wrapped(centre + half)
    if west <= east:
        return [f"lon >= {_number(west)}", f"lon <= {_number(east)}"]
    return [f"(lon >= {_number(west)} or lon <= {_number(east)})"]


def _wrapped(lon: float) -> float:
    return (lon + 180.0) % 360.0 - 180.0


def _number(degrees: float) -> str:
    """Without an exponent, which not every parser of filters knows."""
    return f"{degrees:.9f}"
