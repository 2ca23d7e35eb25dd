"""Why photos make no pairs, in words that say what to change."""

import math
from typing import Final

import numpy as np

from training.geopair.errors import GeoPairError
from training.geopair.positives import Positives

# How many nearest photos of each are looked at for two that could be a pair, until two are found.
_LOOKED_AT: Final = (2, 16, 128)
_DISTANCES_AT_ONCE: Final = 1_000_000


def check_sessions(positives: Positives) -> None:
    """Refuse photos of one session where positives must come from another.

    Raises:
        GeoPairError: ``one_session``.
    """
    settings, sessions = positives.settings, positives.table.sessions
    if not settings.other_session_only or settings.same_session_fallback or np.ptp(sessions) > 0:
        return
    known = "are of one session" if sessions[0] >= 0 else "have no session, which counts as one"
    raise GeoPairError(
        f"all {len(sessions)} references {known}, but geopair.other_session_only asks for positives of another",
        remedy="Set geopair.other_session_only=false or geopair.same_session_fallback=true, or add photos of another "
        "session",
        code="one_session",
    )


def explain_no_pairs(positives: Positives) -> GeoPairError:
    """The error for photos none of which has a positive: how near two come that could be a pair, and what to change."""
    settings, table = positives.settings, positives.table
    conditions = []
    remedies = []
    if settings.heading_window_deg is not None:
        unknown = int(np.isnan(table.headings_deg).sum())
        without = f" ({unknown} have no heading, which never matches)" if unknown else ""
        conditions.append(f"look the same way within {settings.heading_window_deg:g}°{without}")
        remedies.append("widen geopair.heading_window_deg or leave it out")
    if settings.other_session_only and not settings.same_session_fallback:
        conditions.append("are of different sessions")
        remedies.append("set geopair.same_session_fallback=true")
    nearest = nearest_possible_m(positives)
    if math.isfinite(nearest):
        found = f"the nearest two that could be a pair are {nearest:.2f} m apart"
        at_least = math.ceil(nearest * 10) / 10
        also = " (and geopair.never_negative_radius_m)" if at_least > settings.never_negative_radius_m else ""
        remedies.insert(0, f"raise geopair.positive_radius_m to at least {at_least:g}{also}")
    else:
        found = f"nor could any be a pair with one of its {_LOOKED_AT[-1]} nearest"
    which = f" and {' and '.join(conditions)}" if conditions else ""
    remedy = ", or ".join(remedies) or "add photos of the same places"
    return GeoPairError(
        f"of {len(table)} references no two lie within {settings.positive_radius_m:g} m of each other{which}; {found}",
        remedy=remedy[0].upper() + remedy[1:],
        code="no_pairs",
    )


def nearest_possible_m(positives: Positives) -> float:
    """Distance in metres of the nearest two photos that could be a pair but for the radius; infinite if none is found.

    Exact unless none of a photo's 128 nearest could be its positive.
    """
    rows = np.arange(len(positives.table))
    best = math.inf
    for looked_at in _LOOKED_AT:
        count = min(looked_at, len(rows))
        best, reach = math.inf, math.inf
        step = max(1, _DISTANCES_AT_ONCE // count)
        for begin in range(0, len(rows), step):
            part = rows[begin : begin + step]
            distances, near = positives.neighbours.nearest(part, count)
            could = positives.may_pair(part[:, None], near) & (near != part[:, None])
            best = min(best, float(distances[could].min(initial=math.inf)))
            # Beyond its farthest neighbour a photo without any may still have one.
            reach = min(reach, float(distances[~could.any(axis=1), -1].min(initial=math.inf)))
        if best <= reach or count == len(rows):
            break
    return best
