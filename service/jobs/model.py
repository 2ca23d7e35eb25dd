"""Jobs on the wire: what a client asks for, and what it gets."""

from datetime import datetime
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, model_validator

from retrieval.bundle.vlad import SMALLEST_DIM
from retrieval.errors import ParameterError
from retrieval.index.folder import check_index_name
from retrieval.index.vectors.candidates import WantedType
from retrieval.index.vectors.exact import Storage
from service.answer import Problem

JobKind = Literal["full", "append", "remove"]
JobState = Literal["PENDING", "RUNNING", "PUBLISHING", "SUCCEEDED", "FAILED", "CANCELLING", "CANCELLED"]
FINISHED: Final[frozenset[JobState]] = frozenset({"SUCCEEDED", "FAILED", "CANCELLED"})
MAX_REFERENCE_IDS: Final = 100_000


def _index_name(name: str) -> str:
    try:
        return check_index_name(name)
    except ParameterError as error:
        raise ValueError(str(error)) from error


def _plain(text: str) -> str:
    if not text.isprintable():
        raise ValueError("it holds a character that cannot be printed")
    return text


_Name = Annotated[str, AfterValidator(_index_name)]
_Spec = Annotated[str, Field(min_length=1, max_length=4096), AfterValidator(_plain)]


class _Request(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    index: _Name = Field(description="The place index", examples=["campus"])
    publish: Literal["auto", "manual"] = Field(
        default="auto", description="`auto` makes the new version current; `manual` leaves it beside the current one"
    )


class _Describing(_Request):
    source: _Spec = Field(
        description="The photos, as a spec whose path lies below one of the server's source roots",
        examples=["exif:campus/2026"],
    )
    max_unreadable: int = Field(default=0, ge=0, description="How many photos may be left out as undecodable")


class FullJobRequest(_Describing):
    """Make an index anew from a source."""

    kind: Literal["full"]
    storage: Storage = Field(default="fp16", description="Of the vectors")
    index_type: WantedType = Field(default="exact", description="`auto` tries several types and takes what fits best")
    recall: float = Field(
        default=0.95, gt=0, le=1, description="Of an approximate type: share of the ten best of exact search"
    )
    # Jobs of earlier servers asked for fewer: `JobSettings.check_whitening` refuses them where they are submitted.
    whiten: int = Field(
        default=0,
        ge=0,
        description=f"Numbers of a descriptor, of an adapted bundle, at least {SMALLEST_DIM}; 0: as usual. "
        "Refused where the server was given a bundle, or a precision other than fp32",
    )


class AppendJobRequest(_Describing):
    """Add the references of a source that the index does not have; what it has already is not described again."""

    kind: Literal["append"]
    describe_again: bool = Field(
        default=False, description="Describe all references of the source, also those that look unchanged"
    )


class RemoveJobRequest(_Request):
    """Drop references."""

    kind: Literal["remove"]
    reference_ids: Annotated[list[str], Field(min_length=1, max_length=MAX_REFERENCE_IDS, fail_fast=True)] | None = (
        Field(default=None, description="Which", examples=[["2026/05.jpg"]])
    )
    remove_missing: bool = Field(default=False, description="Those whose photos are no longer where they were indexed")

    @model_validator(mode="after")
    def _one_rule(self) -> "RemoveJobRequest":
        if (self.reference_ids is not None) == self.remove_missing:
            raise ValueError("give either reference_ids or remove_missing: true")
        return self


JobRequest = Annotated[FullJobRequest | AppendJobRequest | RemoveJobRequest, Field(discriminator="kind")]
JOB_REQUEST: Final[TypeAdapter[FullJobRequest | AppendJobRequest | RemoveJobRequest]] = TypeAdapter(JobRequest)


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class JobProgress(_Record):
    """How far a job is, in photos to describe."""

    done: int = Field(default=0, description="Photos done, those that failed included")
    total: int | None = Field(default=None, description="Photos to do; null until the source was read")
    failed: int = Field(default=0, description="Photos that could not be decoded")
    skipped: int = Field(default=0, description="Photos that the source leaves out, such as those without a position")
    rate_per_s: float | None = Field(default=None, description="Photos a second since the job last started")
    eta_s: float | None = Field(default=None, description="Seconds until all are described, at this rate")


class GateResult(_Record):
    """What the quality check measured before the version was published."""

    canaries: int = Field(description="References whose photos were described again")
    unreadable_canaries: int = Field(description="References that could not be: their photos are gone or damaged")
    self_matches: int = Field(description="Of them, those that found themselves first")
    held_out_queries: int = Field(description="Queries that are no references")
    recall: float = Field(description="Of the index against exact search on them")
    recall_at: int


class JobResult(_Record):
    """What a job made."""

    index_version: str = Field(description="In which the result is found; the old one if nothing had to change")
    base_version: str | None = Field(description="The version that was current before")
    count: int = Field(description="References in it")
    added: int
    replaced: int = Field(description="References that were described again")
    kept: int = Field(description="References that were taken over as they were")
    removed: int
    activated: bool = Field(description="Whether it became current; with publish: manual it does not")
    gate: GateResult | None = Field(description="Null if nothing had to change")


class JobFailure(_Record):
    """A photo that is not in the index."""

    path: str = Field(description="Below the source's root where possible", examples=["2026/05.jpg"])
    code: str = Field(description="Stable; `skipped` where the source leaves it out", examples=["image_undecodable"])
    reason: str
    remedy: str | None = None


class Job(_Record):
    """A job."""

    id: str
    kind: JobKind
    index: str
    state: JobState
    request: dict[str, Any] = Field(description="What was asked for")
    progress: JobProgress
    waiting_for: str | None = Field(default=None, description="Why a pending job does not start")
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    result: JobResult | None = None
    error: Problem | None = None


class JobPage(_Record):
    """Some jobs, newest first."""

    jobs: list[Job]
    next_page_token: str | None = Field(default=None, description="Give it as `page_token` for the next page")


class JobFailurePage(_Record):
    """Some of the photos that a job could not index."""

    failures: list[JobFailure]
    total: int = Field(description="All of them, also those that are no longer listed")
    next_page_token: str | None = None
