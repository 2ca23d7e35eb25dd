"""What a server does about jobs, for every protocol it speaks: accepts them, and keeps a worker process for them."""

import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import Final

from retrieval.errors import SightfixError
from service.jobs.model import AppendJobRequest, FullJobRequest, Job, JobRequest
from service.jobs.settings import JobSettings
from service.jobs.sources import confined_spec
from service.jobs.store import JobStore
from service.problems import RequestError

_log = logging.getLogger("sightfix.jobs")
_LOOK_EVERY_S: Final = 0.25
_FIRST_PAUSE_S: Final = 0.5
_MAX_KEY: Final = 255
_MAX_NUMBER_DIGITS: Final = 18
_LONGEST_PAUSE_S: Final = 30.0


class WorkerSupervisor:
    """Starts the worker when a job waits, starts it again when it dies, and stops it with the server.

    Two servers may share a jobs folder: both may start a worker, and the second one waits for the first one's lock.

    Args:
        settings: of the jobs.
        store: of the jobs.
        command: that starts a worker; the settings and a flag are appended.
    """

    def __init__(self, settings: JobSettings, store: JobStore, command: Sequence[str] | None = None) -> None:
        self._settings = settings
        self._store = store
        # -P: nothing in the folder that the server happens to run in may be imported, such as a `service.py` there.
        self._command = [*(command or [sys.executable, "-P", "-m", "service.jobs.worker"]), settings.model_dump_json()]
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping = threading.Event()
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="jobs", daemon=True)
        self._pause_s = 0.0
        self._not_before = time.monotonic()
        self._seen: tuple[int, int] | None = None
        self._seen_at = time.monotonic()

    @property
    def worker_pid(self) -> int | None:
        """The process id of a worker that lives, or None."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def start(self) -> None:
        """Begin to look for jobs."""
        self._thread.start()

    def wake(self) -> None:
        """Look for jobs now: there is a new one."""
        self._wake.set()

    def stop(self, grace_s: float = 10.0) -> None:
        """Stop the worker after the current batch; its job waits for the next server.

        Args:
            grace_s: seconds after which it is killed. Its job loses at most one part.
        """
        self._stopping.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()
        process = self._process
        if process is None:
            return
        if process.stdin is not None:
            process.stdin.close()
        process.terminate()
        try:
            process.wait(grace_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _watch(self) -> None:
        while not self._stopping.is_set():
            try:
                self._look()
            except SightfixError as error:
                _log.error("the jobs cannot be read: %s", error)
                self._stopping.wait(1.0)
            except OSError:
                _log.exception("the job worker cannot be started")
                self._stopping.wait(1.0)
            self._wake.wait(_LOOK_EVERY_S)
            self._wake.clear()

    def _look(self) -> None:
        process = self._process
        if process is not None:
            status = process.poll()
            if status is None:
                self._kill_if_stalled(process)
                return
            self._process = None
            if process.stdin is not None:
                process.stdin.close()
            self._plan_next_start(status)
        if time.monotonic() >= self._not_before and self._store.has_work():
            self._start_worker()

    def _start_worker(self) -> None:
        threads = str(self._settings.threads)
        self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
            [*self._command, "--until-stdin-closes"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads},
            start_new_session=True,  # a Ctrl-C at the server's terminal is for the server, which stops the worker
        )
        self._seen, self._seen_at = None, time.monotonic()
        _log.info("job worker started, process %d", self._process.pid)

    def _plan_next_start(self, status: int) -> None:
        if status == 0:
            self._pause_s = 0.0
            return
        self._pause_s = min(_LONGEST_PAUSE_S, max(_FIRST_PAUSE_S, 2 * self._pause_s))
        self._not_before = time.monotonic() + self._pause_s
        _log.error("job worker ended with status %d; another one starts in %.1f s", status, self._pause_s)

    def _kill_if_stalled(self, process: subprocess.Popen[bytes]) -> None:
        """Heartbeats are counted, and timed by this process's own clock: no two clocks are compared."""
        beat = self._store.beat()
        if beat is None or beat[0] != process.pid:
            return  # it waits for another server's worker, or starts
        now = time.monotonic()
        if beat != self._seen:
            self._seen, self._seen_at = beat, now
        elif now - self._seen_at > self._settings.stalled_s:
            _log.error("job worker %d gave no heartbeat for %.0f s and is killed", process.pid, now - self._seen_at)
            process.kill()
            process.wait()


class JobService(JobStore):
    """Accepts, lists and cancels jobs, and has a worker process do them.

    The calls wait for the disk: call them outside the event loop.

    Args:
        settings: of the jobs.
        command: that starts a worker, for tests.

    Raises:
        StorageError: the database of jobs cannot be opened, or has a later format; any call may raise it too.
    """

    def __init__(self, settings: JobSettings, command: Sequence[str] | None = None) -> None:
        super().__init__(settings)
        self.supervisor = WorkerSupervisor(settings, self, command)

    def start(self) -> None:
        """Begin to do jobs, those first that an earlier server left."""
        self.supervisor.start()

    def stop(self) -> None:
        """Stop the worker after the current batch, and close the database."""
        self.supervisor.stop()
        self.close()

    def submit(self, request: JobRequest, idempotency_key: str | None = None) -> tuple[Job, bool]:
        """Accept a job.

        Returns:
            The job, and whether it is new: the same key with the same request gives the job it gave before.

        Raises:
            RequestError: see `confined_spec` and `JobStore.submit`.
        """
        known = self.known(request, idempotency_key)
        if known is not None:
            return known, False
        if isinstance(request, (FullJobRequest, AppendJobRequest)):
            confined_spec(request.source, self.settings.source_roots)
            self.settings.check_whitening(request)
        elif not self.settings.source_roots:
            raise RequestError(
                "this server accepts no jobs", code="jobs_disabled", remedy="Start it with at least one source root"
            )
        job, is_new = super().submit(request, idempotency_key)
        self.supervisor.wake()
        return job, is_new


def parse_key(key: str | None) -> str | None:
    """Check an Idempotency-Key.

    Raises:
        RequestError: it is empty, too long, or not printable ASCII (``validation_error``).
    """
    if key is not None and not (0 < len(key) <= _MAX_KEY and key.isascii() and key.isprintable()):
        raise RequestError(
            f"the Idempotency-Key is not 1 to {_MAX_KEY} printable ASCII characters",
            code="validation_error",
            remedy="Send a random UUID",
        )
    return key


def page_number(token: str | None) -> int | None:
    """The position that a page token encodes.

    Raises:
        RequestError: no page gave this token (``validation_error``).
    """
    if token is None:
        return None
    if not (token.isascii() and token.isdigit() and len(token) <= _MAX_NUMBER_DIGITS):
        raise RequestError(
            "the page_token is none that a page gave", code="validation_error", remedy="Leave it out for the first page"
        )
    return int(token)
