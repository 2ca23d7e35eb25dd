"""milvus-lite builds an index at once; pymilvus sleeps half a second each time before it asks whether it has."""

import time
from typing import Any, Final

_LONGEST_SLEEP_S: Final = 0.01


class _ShortSleeps:
    """The module `time`, with short sleeps."""

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)

    def sleep(self, seconds: float) -> None:
        time.sleep(min(seconds, _LONGEST_SLEEP_S))


def poll_often() -> None:
    """Shorten pymilvus's waiting in this process."""
    from pymilvus.client import grpc_handler

    grpc_handler.time = _ShortSleeps()
