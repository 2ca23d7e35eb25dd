"""The settings of the jobs of a server."""

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from retrieval.bundle import Precision
from retrieval.bundle.vlad import SMALLEST_DIM
from retrieval.engines.choosing import ProviderChoice
from retrieval.images import DEFAULT_LIMITS
from service.answer import FieldProblem
from service.jobs.model import FullJobRequest, JobRequest
from service.problems import RequestError

# Absolute, for the worker is another process; links are resolved when they are used, not before.
_AbsolutePath = Annotated[Path, AfterValidator(lambda path: path.expanduser().absolute())]


class JobSettings(BaseModel):
    """Settings of the jobs of one server. They go to the worker as JSON.

    Attributes:
        jobs_folder: of the database of jobs and of what running jobs keep.
        indexes: the folder of all place indexes.
        store: address of an engine in which what jobs make is published, too; None: nowhere else than in the folder.
        source_roots: folders below which a job's photos may lie; without any, no job is accepted.
        bundle: that describes the photos of an index that holds none yet; None is the shipped one.
        provider, precision, allow_cpu_fallback, gpu_mem_limit, engine_cache: of the worker's describer.
        threads: of the worker's model on the CPU.
        decode_threads: photos that the worker decodes at the same time.
        niceness: of the worker, 0 (as the server) to 19 (only when no other process needs the core).
        batch_size: photos described at once; a cancelled job stops after the current batch.
        part_photos: photos described between two points from which a killed job is resumed.
        max_image_bytes, max_pixels: of a photo.
        keep: versions of an index that remain after one was published.
        max_waiting: jobs that may wait; more are rejected with 429.
        max_request_bytes: of the body that asks for a job.
        kept_failures: photos that could not be indexed that are listed for one job; all are counted.
        kept_jobs: finished jobs that are remembered.
        idle_exit_s: the worker ends after so many seconds without work, and frees its memory.
        stalled_s: a worker without a heartbeat for so many seconds is killed and started again.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    jobs_folder: _AbsolutePath
    indexes: _AbsolutePath
    store: str | None = None
    source_roots: tuple[_AbsolutePath, ...] = ()
    bundle: _AbsolutePath | None = None
    provider: ProviderChoice = "cpu"
    precision: Precision = "fp32"
    allow_cpu_fallback: bool = False
    gpu_mem_limit: int | None = None
    engine_cache: _AbsolutePath | None = None
    threads: int = Field(default=1, ge=1)
    decode_threads: int = Field(default=1, ge=1)
    niceness: int = Field(default=15, ge=0, le=19)
    batch_size: int = Field(default=8, ge=1, le=1024)
    part_photos: int = Field(default=256, ge=1)
    max_image_bytes: int = Field(default=DEFAULT_LIMITS.max_bytes, ge=1024)
    max_pixels: int = Field(default=DEFAULT_LIMITS.max_pixels, ge=1)
    keep: int = Field(default=3, ge=1)
    max_waiting: int = Field(default=100, ge=1)
    max_request_bytes: int = Field(default=4 * 1024 * 1024, ge=1024)
    kept_failures: int = Field(default=1000, ge=0)
    kept_jobs: int = Field(default=1000, ge=1)
    idle_exit_s: float = Field(default=10.0, ge=0)
    stalled_s: float = Field(default=60.0, gt=0)

    @property
    def adapts(self) -> bool:
        """Whether jobs may adapt the bundle of an index to its photos.

        What the server was given to describe with is not changed under it, and an adapted bundle has no graph but fp32.
        """
        return self.bundle is None and self.precision == "fp32"

    def check_whitening(self, request: JobRequest) -> None:
        """Refuse a job that asks for a number of numbers that no descriptor has, or that this server could not serve.

        Raises:
            RequestError: it is too small, or jobs do not adapt bundles (``validation_error``).
        """
        if not isinstance(request, FullJobRequest) or not request.whiten:
            return
        if request.whiten < SMALLEST_DIM:
            what, remedy = f"{request.whiten} numbers are too few", f"Send 0, or {SMALLEST_DIM} at least"
        elif not self.adapts:
            given = f"describes in {self.precision}" if self.bundle is None else "was given the bundle to describe with"
            what = f"this server {given}, so its jobs do not adapt bundles"
            remedy = "Leave out whiten, or have the server started without SIGHTFIX_BUNDLE and in fp32"
        else:
            return
        wrong = FieldProblem(pointer="/whiten", message=what)
        raise RequestError(f"/whiten: {what}", code="validation_error", remedy=remedy, errors=[wrong])

    @property
    def database(self) -> Path:
        """The SQLite file."""
        return self.jobs_folder / "jobs.sqlite3"

    @property
    def worker_lock(self) -> Path:
        """The file whose lock the one worker holds."""
        return self.jobs_folder / "worker.lock"

    def work_folder(self, job_id: str) -> Path:
        """Where a job keeps what it has done so far."""
        return self.jobs_folder / "work" / job_id
