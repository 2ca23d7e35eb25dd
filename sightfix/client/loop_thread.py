"""An event loop in a thread of its own, for callers that have none."""

import asyncio
import os
import threading
import weakref
from collections.abc import Coroutine
from typing import Any, TypeVar

Value = TypeVar("Value")


class LoopThread:
    """Runs coroutines for any number of threads. The loop's thread starts with the first of them.

    It is a daemon: a program that forgets `close` ends all the same.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pid = 0
        self._end: weakref.finalize[..., LoopThread] | None = None

    def run(self, coroutine: Coroutine[Any, Any, Value]) -> Value:
        """Wait for a coroutine; Ctrl-C cancels it.

        Raises:
            RuntimeError: the process was forked since the loop started: threads do not live on in the child.
        """
        try:
            future = asyncio.run_coroutine_threadsafe(coroutine, self._running())
        except BaseException:
            coroutine.close()
            raise
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def close(self) -> None:
        """End the thread, if it ever ran; the next `run` starts another."""
        with self._lock:
            self._loop = None
            if self._end is not None:
                self._end()

    def _running(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop, self._pid = asyncio.new_event_loop(), os.getpid()
                threading.Thread(target=_run, args=(self._loop,), name="sightfix-client", daemon=True).start()
                self._end = weakref.finalize(self, _stop, self._loop, self._pid)
                self._end.atexit = False
            elif self._pid != os.getpid():
                raise RuntimeError("this client was used before the process was forked: make one in each process")
            return self._loop


def _run(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
        # Whoever still waits for an answer hears that there will be none.
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        loop.run_until_complete(loop.shutdown_default_executor())
    finally:
        loop.close()


def _stop(loop: asyncio.AbstractEventLoop, pid: int) -> None:
    if pid == os.getpid():
        loop.call_soon_threadsafe(loop.stop)
