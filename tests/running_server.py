"""A real `sightfix serve` on a free loopback port, stopped by its process id."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.forked import ForkedProcess, run_command

START_LIMIT_S = 60.0
ServerProcess = subprocess.Popen[str] | ForkedProcess


@dataclass(frozen=True)
class RunningServer:
    """A server process that listens at `url`."""

    process: ServerProcess
    url: str
    log: Path

    def wait_until_ready(self) -> None:
        """Wait until /readyz says so; fail with the log when it never does."""
        deadline = time.monotonic() + START_LIMIT_S
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                break
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{self.url}/readyz").status_code == 200:
                    return
            time.sleep(0.05)
        raise AssertionError(f"the server never became ready:\n{self.log.read_text()}")

    def stop(self) -> int:
        """SIGTERM; returns the exit status."""
        if self.process.poll() is None:
            os.kill(self.process.pid, signal.SIGTERM)
        try:
            return self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise


@contextlib.contextmanager
def running_server(
    log: Path, arguments: Sequence[str], environment: dict[str, str] | None = None
) -> Iterator[RunningServer]:
    """Start `sightfix serve --port 0 …`; the socket is open when this yields, the model perhaps not yet."""
    command = [sys.executable, "-m", "sightfix.cli", "serve", "--port", "0", *arguments]
    with log.open("w") as stream:
        process = subprocess.Popen(
            command, stdout=stream, stderr=subprocess.STDOUT, text=True, env={**os.environ, **(environment or {})}
        )
    with watched(process, log) as running:
        yield running


@contextlib.contextmanager
def forked_server(
    log: Path, arguments: Sequence[str], environment: dict[str, str] | None = None
) -> Iterator[RunningServer]:
    """The same, forked: sooner there, for tests that do not care how it was started."""
    process = ForkedProcess(run_command, ["serve", "--port", "0", *arguments], log=log, environment=environment or {})
    with watched(process, log) as running:
        yield running


@contextlib.contextmanager
def watched(process: ServerProcess, log: Path) -> Iterator[RunningServer]:
    """A server process that has just been started; the socket is open when this yields. Stopped at the end."""
    try:
        yield RunningServer(process, _address(process, log), log)
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _address(process: ServerProcess, log: Path) -> str:
    deadline = time.monotonic() + START_LIMIT_S
    while time.monotonic() < deadline and process.poll() is None:
        found = re.search(r"listening on (https?://\S+),", log.read_text()) if log.exists() else None
        if found:
            return found.group(1)
        time.sleep(0.02)
    raise AssertionError(f"the server did not start:\n{log.read_text()}")
