"""How urgent a request is: its lane and its deadline, read from headers."""

import math
from dataclasses import dataclass
from typing import Final

from fastapi import Request

from service.batching import Lane
from service.live_localizer import LiveLocalizer
from service.problems import RequestError

LANE_HEADER: Final = "X-Lane"
DEADLINE_HEADER: Final = "X-Deadline-Ms"
MAX_DEADLINE_MS: Final = 600_000

URGENCY_PARAMETERS: Final = [
    {
        "name": LANE_HEADER,
        "in": "header",
        "description": "robot is answered before bulk",
        "schema": {"type": "string", "enum": ["robot", "bulk"]},
    },
    {
        "name": DEADLINE_HEADER,
        "in": "header",
        "description": "Milliseconds after which the answer is of no use; what cannot make it is refused at once",
        "schema": {"type": "number", "exclusiveMinimum": 0, "maximum": MAX_DEADLINE_MS},
    },
]


@dataclass(frozen=True, slots=True)
class Urgency:
    """Lane, and deadline on `time.monotonic`."""

    lane: Lane
    deadline: float


def urgency_of(request: Request, live: LiveLocalizer, default_lane: Lane = "robot") -> Urgency:
    """Read lane and deadline; the deadline counts from now.

    Raises:
        RequestError: an unknown lane, or a deadline that is not a positive number of milliseconds.
    """
    lane = request.headers.get(LANE_HEADER, default_lane)
    if lane not in ("robot", "bulk"):
        raise RequestError(
            f"the header {LANE_HEADER} {lane!r} is no lane", code="validation_error", remedy="Send robot or bulk"
        )
    text = request.headers.get(DEADLINE_HEADER)
    if text is None:
        return Urgency(lane, live.deadline())  # type: ignore[arg-type]
    try:
        milliseconds = float(text)
    except ValueError:
        milliseconds = math.nan
    if not 0 < milliseconds <= MAX_DEADLINE_MS:
        raise RequestError(
            f"the header {DEADLINE_HEADER} {text!r} is not a number of milliseconds above 0",
            code="validation_error",
            remedy=f"Send such as 500; at most {MAX_DEADLINE_MS}",
        )
    return Urgency(lane, live.deadline(milliseconds / 1e3))  # type: ignore[arg-type]
