"""Processes for tests that kill them, forked from one that has imported the product and has done nothing else.

A kill needs a process of its own; it does not need everything imported again.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import get_context
from pathlib import Path
from types import MappingProxyType
from typing import Final

# With what they import when they are first used.
_PRELOADED: Final = [
    *("sightfix.cli", "service.jobs.worker", "service.server"),
    *("cv2", "faiss", "onnxruntime", "pandas", "pyproj"),
]
_context: Final = get_context("forkserver")
_context.set_forkserver_preload(_PRELOADED)


class ForkedProcess:
    """A function that runs in a process of its own; looks like `subprocess.Popen`.

    Args:
        function: of a module; its result is the exit status, None is 0.
        arguments: of the function; they are pickled.
        log: what the process writes to its standard output is appended here.
        errors: what it writes to its standard error; the log by default.
        folder: it runs in; this process's by default.
        environment: variables of the process beside those of this one.
    """

    def __init__(
        self,
        function: Callable[..., object],
        *arguments: object,
        log: Path,
        errors: Path | None = None,
        folder: Path | None = None,
        environment: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        given = (dict(environment), folder, log, errors or log, function, *arguments)
        self._process = _context.Process(target=_call, args=given)
        self._process.start()

    @property
    def pid(self) -> int:
        """The process id."""
        assert self._process.pid is not None
        return self._process.pid

    def poll(self) -> int | None:
        """The exit status; negative, the signal that killed it; None while it runs."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end; returns the exit status."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(str(self._process), timeout or 0.0)
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        """Send a signal."""
        os.kill(self.pid, number)

    def terminate(self) -> None:
        """SIGTERM."""
        self._process.terminate()

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()


def run_forked(function: Callable[..., object], *arguments: object, log: Path, limit_s: float = 90.0) -> int:
    """Call a function in a process of its own and wait for its end.

    Args:
        function: see `ForkedProcess`.
        arguments: of the function.
        log: of the process.
        limit_s: after which it is killed, and the test fails.

    Returns:
        The exit status; negative, the signal that killed it.
    """
    process = ForkedProcess(function, *arguments, log=log)
    try:
        return process.wait(limit_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise AssertionError(f"it did not end within {limit_s:.0f} s:\n{log.read_text()}") from None


def sightfix(
    *arguments: str, folder: Path | None = None, environment: Mapping[str, str] = MappingProxyType({})
) -> subprocess.CompletedProcess[str]:
    """Run a command of `sightfix` in a process of its own; its output and its exit status."""
    with tempfile.TemporaryDirectory() as streams:
        output, errors = Path(streams, "output"), Path(streams, "errors")
        process = ForkedProcess(
            run_command, arguments, log=output, errors=errors, folder=folder, environment=environment
        )
        try:
            status = process.wait(120)
        finally:
            process.kill()
        return subprocess.CompletedProcess(arguments, status, output.read_text(), errors.read_text())


def run_command(arguments: Sequence[str]) -> None:
    """`sightfix` with some arguments, in this process."""
    from sightfix.cli import main

    sys.argv = ["sightfix", *arguments]
    main()


def _call(
    environment: dict[str, str],
    folder: Path | None,
    log: Path,
    errors: Path,
    function: Callable[..., object],
    *arguments: object,
) -> None:
    for stream, path in ((1, log), (2, errors)):
        opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(opened, stream)
        os.close(opened)
    os.environ.update(environment)
    if folder is not None:
        os.chdir(folder)
    raise SystemExit(function(*arguments))
