"""The process that does the jobs: ``python -P -m service.jobs.worker SETTINGS``, with `JobSettings` as JSON.

It runs at low priority, one job after another, and ends when there has been nothing to do for a while. On SIGTERM, or
when the server that started it is gone, it stops after the current batch; the job waits and is resumed later. A lock
allows one worker for each jobs folder; the kernel releases it with the process, however that ends.
"""

import argparse
import contextlib
import logging
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout

from index_builder.describing import DescribeSettings
from index_builder.index_design import IndexDesign
from index_builder.publish import finish_publishing
from index_builder.push import PushSettings, push_to
from index_builder.quality import QualitySettings
from index_builder.update import UpdateSettings, append_references, build_index, bundle_for_build, remove_references
from index_builder.update_observer import PhotoRate, Update, UpdateObserver, UpdateStep
from retrieval.artefact import storage_errors
from retrieval.bundle import Bundle
from retrieval.describer import Describer
from retrieval.errors import ArtefactError, SightfixError
from retrieval.images import ImageLimits, LeftOut
from retrieval.index.folder import current_version_or_none
from retrieval.index.stores import FolderStore
from retrieval.references import open_references
from service.jobs.model import AppendJobRequest, FullJobRequest, JobFailure, JobRequest, JobResult, RemoveJobRequest
from service.jobs.settings import JobSettings
from service.jobs.sources import ConfinedSource, confined_spec
from service.jobs.work_queue import TakenJob, WorkQueue
from service.observing.logs import log_to_stderr
from service.problems import job_problem

_log = logging.getLogger("sightfix.jobs")
_LOCK_RETRY_S: Final = 0.5
_LOOK_EVERY_S: Final = 0.2
_BEAT_EVERY_S: Final = 1.0
_TRY_AGAIN_S: Final = 5.0
_REPORT_EVERY_S: Final = 0.5


class JobCancelledError(Exception):
    """The job was cancelled."""


class WorkerStoppedError(Exception):
    """The worker is to stop; the job waits."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a worker.

    Args:
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
        lock = worker_lock(settings.worker_lock, stop)
        if lock is not None:
            with lock:
                serve_jobs(settings, stop)
    except SightfixError as error:
        _log.error("the worker stops: %s", error)
        return 1
    return 0


def worker_lock(path: Path, stop: threading.Event) -> AbstractContextManager[object] | None:
    """Take the worker's lock, waiting for it as long as another worker lives.

    Args:
        path: of the lock file.
        stop: ends the waiting.

    Returns:
        a context that releases the lock; None when `stop` was set first.

    Raises:
        StorageError: the file cannot be made.
    """
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            return FileLock(path).acquire(poll_interval=_LOCK_RETRY_S, cancel_check=stop.is_set)
        except Timeout:
            return None


def serve_jobs(settings: JobSettings, stop: threading.Event) -> None:
    """Do jobs until there are none for a while, or `stop` is set. The caller holds the worker's lock."""
    queue = WorkQueue(settings)
    queue.recover()
    _remove_leftovers(settings.work_folder(""), queue.unfinished())
    threading.Thread(target=_beat, args=(settings,), name="beat", daemon=True).start()
    runner = JobRunner(settings, queue, stop)
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
        with contextlib.suppress(SightfixError):  # a full disk is reported by the job
            queue.beat(os.getpid())
        time.sleep(_BEAT_EVERY_S)


def _remove_leftovers(work: Path, unfinished: set[str]) -> None:
    for folder in work.iterdir() if work.is_dir() else ():
        if folder.name not in unfinished:
            shutil.rmtree(folder, ignore_errors=True)


class JobObserver(UpdateObserver):
    """Records the progress of a job, and stops it when it or the worker is to stop.

    Args:
        queue: where to write.
        job: the job.
        stop: set when the worker is to stop.
    """

    def __init__(self, queue: WorkQueue, job: TakenJob, stop: threading.Event) -> None:
        self._queue = queue
        self._job = job
        self._stop = stop
        self._looked = self._reported = time.monotonic()
        self._rate = PhotoRate()
        self._done = self._failed = self._total = 0

    def check_stopped(self) -> None:
        """Raise when the worker or the job is to stop."""
        if self._stop.is_set():
            raise WorkerStoppedError
        if time.monotonic() - self._looked > _LOOK_EVERY_S:
            self._looked = time.monotonic()
            if self._queue.is_cancelled(self._job):
                raise JobCancelledError

    def not_pruned(self, problem: str) -> None:
        """The job succeeded; the operator should know all the same."""
        _log.warning("old versions stay: %s", problem)

    def reached(self, step: UpdateStep) -> None:
        """Update the job's state."""
        if step == "part written":
            self._queue.survived(self._job)
        elif step == "described":
            self._report()
            self._queue.writing_version(self._job)

    def listed(self, count: int, left_out: Sequence[LeftOut]) -> None:
        """The source was read."""
        self._queue.listed(self._job, len(left_out), [JobFailure(**asdict(one)) for one in left_out])

    def planned(self, total: int) -> None:
        """How many photos are to be described."""
        self._total = total
        self._report()

    def described(self, done: int, failed: int) -> None:
        """How many are."""
        self._done, self._failed = done, failed
        self._rate.update(done)
        if time.monotonic() - self._reported > _REPORT_EVERY_S:
            self._report()

    def unreadable(self, photos: Sequence[LeftOut]) -> None:
        """These could not be decoded."""
        self._queue.add_failures(self._job, [JobFailure(**asdict(one)) for one in photos])
        self._report()

    def publishing(self, update: Update) -> None:
        """The last moment to stop."""
        if not self._queue.publishing(self._job, result_of(update)):
            raise JobCancelledError

    def _report(self) -> None:
        self._reported = time.monotonic()
        rate = self._rate.per_second
        self._queue.progress(self._job, done=self._done, total=self._total, failed=self._failed, rate_per_s=rate)


def result_of(update: Update) -> JobResult:
    """An update as the result of its job."""
    return JobResult.model_validate(
        {
            "index_version": update.version,
            "base_version": update.base,
            "count": update.count,
            "added": update.added,
            "replaced": update.replaced,
            "kept": update.kept,
            "removed": update.removed,
            "activated": update.activated,
            "gate": asdict(update.quality) if update.quality is not None else None,
        }
    )


class JobRunner:
    """Does jobs.

    Args:
        settings: of the jobs.
        queue: of the jobs.
        stop: set when the worker is to stop.
    """

    def __init__(self, settings: JobSettings, queue: WorkQueue, stop: threading.Event) -> None:
        self._settings = settings
        self._queue = queue
        self._stop = stop
        self._describer: Describer | None = None

    def run(self, job: TakenJob) -> bool:
        """Finish a job, or put it back. False when its index is being built elsewhere, or the store is away."""
        _log.info("job %s begins: %s of %s", job.id, job.request.kind, job.request.index)
        try:
            result = self._finish_interrupted(job) or self._update(job)
            self._push(job, result)
        except JobCancelledError:
            self._clear(job)
            self._queue.cancelled(job)
            _log.info("job %s is cancelled", job.id)
        except WorkerStoppedError:
            self._queue.put_back(job)
            _log.info("job %s waits: the worker stops", job.id)
        except SightfixError as error:
            if error.code in ("build_in_progress", "store_unavailable"):
                self._queue.put_back(job, waiting_for=str(error))
                return False
            self._fail(job, error.code, str(error))
        except Exception:
            _log.exception("job %s failed", job.id)
            self._fail(job, "internal_error", "The job failed because of a fault of the server; its log says which.")
        else:
            self._queue.succeed(job, result)
            self._clear(job)
            _log.info("job %s made version %s of %s", job.id, result.index_version, job.request.index)
        return True

    def _finish_interrupted(self, job: TakenJob) -> JobResult | None:
        """Finish what an earlier run published when it died, and do nothing twice."""
        made = job.update_made
        if made is None:
            return None
        with contextlib.suppress(ArtefactError):
            name, version = job.request.index, made.index_version
            if finish_publishing(
                self._settings.indexes, name, version, base=made.base_version, activate=made.activated
            ):
                return made
        self._queue.not_published(job)
        return None

    def _update(self, job: TakenJob) -> JobResult:
        request, jobs = job.request, self._settings
        observer = JobObserver(self._queue, job, self._stop)
        jobs.check_whitening(request)  # the settings may be others than when the job was accepted
        dim = (request.whiten or None) if isinstance(request, FullJobRequest) else None
        first = current_version_or_none(jobs.indexes / request.index) is None
        settings = UpdateSettings(
            design=_design(request),
            adapt="auto" if jobs.adapts and (first or dim is not None) else "never",
            dim=dim,
            describe=DescribeSettings(
                batch_size=jobs.batch_size,
                decode_threads=jobs.decode_threads,
                limits=ImageLimits(jobs.max_image_bytes, jobs.max_pixels),
                max_unreadable=0 if isinstance(request, RemoveJobRequest) else request.max_unreadable,
            ),
            describe_again=isinstance(request, AppendJobRequest) and request.describe_again,
            part_photos=jobs.part_photos,
            quality=QualitySettings(),
            activate=request.publish == "auto",
            keep=jobs.keep,
        )
        describer, work = self._open_describer(self._bundle(request)), jobs.work_folder(job.id)
        into = (describer, jobs.indexes, request.index, settings)
        if isinstance(request, RemoveJobRequest):
            update = remove_references(request.reference_ids, *into, work=work, observer=observer)
        elif isinstance(request, AppendJobRequest):
            update = append_references(self._source(request), *into, work=work, observer=observer)
        else:
            update = build_index(self._source(request), *into, work=work, observer=observer)
        if update.quality is None and self._queue.is_cancelled(job):  # nothing was published, nor had to be
            raise JobCancelledError
        return result_of(update)

    def _push(self, job: TakenJob, result: JobResult) -> None:
        """Publish the version in the store that the server reads from, too; what an earlier run wrote there stays."""
        settings = self._settings
        if settings.store is None:
            return
        made = FolderStore(settings.indexes).open(job.request.index, result.index_version)
        observer = JobObserver(self._queue, job, self._stop)
        push_to(
            settings.store,
            made,
            PushSettings(activate=result.activated, keep=settings.keep),
            on_rows=lambda _: observer.check_stopped(),
        )

    def _source(self, request: FullJobRequest | AppendJobRequest) -> ConfinedSource:
        roots = self._settings.source_roots
        return ConfinedSource(open_references(confined_spec(request.source, roots)), roots, request.source)

    def _bundle(self, request: JobRequest) -> Bundle:
        """The bundle that describes the photos of a job: as a rule the one that the index holds."""
        jobs = self._settings
        if isinstance(request, FullJobRequest):
            return bundle_for_build(jobs.indexes, request.index, of_a_first=jobs.bundle)
        base = FolderStore(jobs.indexes, memory_map=True).open(request.index)
        return base.open_bundle(None if base.manifest.bundle.held else jobs.bundle)

    def _open_describer(self, bundle: Bundle) -> Describer:
        """The describer of a bundle; its engine is kept from job to job while that stays the same."""
        settings = self._settings
        if self._describer is not None:
            if self._describer.bundle.manifest == bundle.manifest:
                self._describer.bundle_moved(bundle)  # the version that it was opened from may be pruned
                return self._describer
            self._describer.close()
            self._describer = None
        self._describer = Describer(
            bundle,
            provider=settings.provider,
            precision=settings.precision,
            threads=settings.threads,
            max_batch=settings.batch_size,
            allow_cpu_fallback=settings.allow_cpu_fallback,
            gpu_mem_limit=settings.gpu_mem_limit,
            engine_cache=settings.engine_cache,
            on_build=_log.info,
        )
        return self._describer

    def _fail(self, job: TakenJob, code: str, detail: str) -> None:
        self._clear(job)  # first: on a full disk this makes the room to record why
        self._queue.fail(job, job_problem(job.id, code, detail))
        _log.error("job %s failed: %s", job.id, detail)

    def _clear(self, job: TakenJob) -> None:
        shutil.rmtree(self._settings.work_folder(job.id), ignore_errors=True)


def _design(request: JobRequest) -> IndexDesign:
    """The index that a request asks for; one that is appended to or removed from keeps its design."""
    if not isinstance(request, FullJobRequest):
        return IndexDesign()
    return IndexDesign(storage=request.storage, type=request.index_type, recall=request.recall)


if __name__ == "__main__":
    sys.exit(main())
