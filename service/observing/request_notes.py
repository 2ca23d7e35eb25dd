"""What is known of the request in hand: for its log line, its span, and every message that is logged on its behalf."""

from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opentelemetry.trace import Span


@dataclass(slots=True)
class RequestNotes:
    """Notes on one request.

    Attributes:
        request_id: plain, see `request_id_of`.
        trace_id: 32 hex digits, if the request is traced.
        span: of the request, if it is traced.
        photos: how many were answered.
        fix_status: of the only photo; of several, the last one's.
        index_version: that answered.
    """

    request_id: str
    trace_id: str | None = None
    span: "Span | None" = None
    photos: int = 0
    fix_status: str | None = None
    index_version: str | None = None


CURRENT: ContextVar[RequestNotes | None] = ContextVar("sightfix_request", default=None)
