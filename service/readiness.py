"""Whether a server can answer."""

from dataclasses import dataclass
from typing import Literal

State = Literal["loading", "ready", "unhealthy", "failed", "stopping"]


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether the server can answer, and why not."""

    state: State
    reason: str | None = None
