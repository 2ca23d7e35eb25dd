"""The worker as a process: one at a time, at low priority, stopped by a signal or with its server."""

import argparse
import contextlib
import logging
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Protocol

from retrieval.errors import SightfixError
from service.jobs.job_settings import JobSettings
from service.jobs.work_queue import TakenJob, WorkQueue
from service.jobs.worker_lock import worker_lock
from service.logs import log_to_stderr

_log = logging.getLogger("sightfix.jobs")

_LOOK_EVERY_S: Final = 0.2
_BEAT_EVERY_S: Final = 1.0
_TRY_AGAIN_S: Final = 5.0


class Runner(Protocol):
    """Does jobs."""

    def run(self, job: TakenJob) -> bool:
        """Bring a job to its end, or put it back. False when its index is being built by somebody else."""
        ...


MakeRunner = Callable[[JobSettings, WorkQueue, threading.Event], Runner]


def run_worker(make_runner: MakeRunner, arguments: Sequence[str] | None = None) -> int:
    """Run a worker.

    Args:
        make_runner: makes what does the jobs.
        arguments: of the command line; those of this process by default.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(prog="service.jobs.worker", description="Does the batch jobs of a sightfix server")
    parser.add_argument("settings", help="JobSettings as JSON")
    parser.add_argument("--until-stdin-closes", action="store_true", help="stop when the server that started this ends")
    given = parser.parse_args(arguments)
    settings = JobSettings.model_validate_json(given.settings)
    log_to_stderr("info")
    os.nice(settings.niceness)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    if given.until_stdin_closes:
        threading.Thread(target=_stop_with_stdin, args=(stop,), name="stdin", daemon=True).start()
    try:
        with worker_lock(settings.worker_lock, stop) as held:
            if held:
                serve_jobs(settings, stop, make_runner)
    except SightfixError as error:
        _log.error("the worker stops: %s", error)
        return 1
    return 0


def serve_jobs(settings: JobSettings, stop: threading.Event, make_runner: MakeRunner) -> None:
    """Do jobs until there are none for a while, or `stop` is set. The caller holds the worker's lock."""
    queue = WorkQueue(settings)
    queue.recover()
    _remove_leftovers(settings.work_folder(""), queue.unfinished())
    threading.Thread(target=_beat, args=(settings,), name="beat", daemon=True).start()
    runner = make_runner(settings, queue, stop)
    built_elsewhere: dict[str, float] = {}
    idle_since = time.monotonic()
    while not stop.is_set():
        now = time.monotonic()
        built_elsewhere = {name: until for name, until in built_elsewhere.items() if until > now}
        job = queue.take(not_of=list(built_elsewhere))
        if job is not None:
            if not runner.run(job):
                built_elsewhere[job.request.index] = time.monotonic() + _TRY_AGAIN_S
            idle_since = time.monotonic()
        elif not built_elsewhere and now - idle_since >= settings.idle_exit_s:
            break
        else:
            stop.wait(_LOOK_EVERY_S)
    queue.close()


def _stop_with_stdin(stop: threading.Event) -> None:
    while os.read(0, 4096):
        pass
    stop.set()


def _beat(settings: JobSettings) -> None:
    queue = WorkQueue(settings)  # a connection of its own: it must not wait for the job's
    while True:
        with contextlib.suppress(SightfixError):  # a full disk is told by the job
            queue.beat(os.getpid())
        time.sleep(_BEAT_EVERY_S)


def _remove_leftovers(work: Path, unfinished: set[str]) -> None:
    for folder in work.iterdir() if work.is_dir() else ():
        if folder.name not in unfinished:
            shutil.rmtree(folder, ignore_errors=True)
