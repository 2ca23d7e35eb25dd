"""Many requests, one model: admission, lanes, and batches that grow while the model is busy."""

from service.batching.batcher import MicroBatcher
from service.batching.duration import BatchDuration
from service.batching.refusal_pace import RefusalPace
from service.batching.waiting import Lane, RefusedError, Waiting

__all__ = ["BatchDuration", "Lane", "MicroBatcher", "RefusalPace", "RefusedError", "Waiting"]
