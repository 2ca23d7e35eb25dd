"""What answers cost, waiting included."""

import time
from dataclasses import dataclass

from retrieval.answer import LocalizeAnswer
from retrieval.describer import Descriptors


@dataclass(frozen=True, slots=True)
class Timed:
    """A descriptor and what it cost.

    Attributes:
        descriptor: (D,) float32, unit length.
        decode_ms, queue_ms: milliseconds of decoding and of waiting for the model.
    """

    descriptor: Descriptors
    decode_ms: float
    queue_ms: float


def timed(answer: LocalizeAnswer, waited_s: float, started: float) -> LocalizeAnswer:
    """The answer with the time it waited, and the whole time since its request was complete."""
    total_ms = (time.perf_counter() - started) * 1e3
    timings = answer.timings_ms.model_copy(update={"queue": waited_s * 1e3, "total": total_ms})
    return answer.model_copy(update={"timings_ms": timings})
