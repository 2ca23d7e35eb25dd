"""Log lines on stderr: one line a message for people, or one JSON object a line for machines.

What a client sends can reach a message, a file name for example. Control characters are escaped and tracebacks are
indented, so that nothing a client sends can look like another message.
"""

import json
import logging
import re
import sys
import warnings
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    from opentelemetry.trace import Span

LogFormat = Literal["text", "json"]

# All that is ever taken from a record beside its message: a stray extra cannot carry a header or an image out.
_FIELDS: Final = (
    *("request_id", "trace_id", "method", "route", "status", "duration_ms"),
    *("fix_status", "photos", "index_version"),
)

# C0, DEL and C1 (terminals obey them), and the two line ends that only Unicode knows.
_CONTROL: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")

_access_log = logging.getLogger("sightfix.access")


@dataclass(slots=True)
class RequestNotes:
    """What is known of one request: for its log line, its span, and the messages that are logged while it is answered.

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


def log_access(notes: RequestNotes, method: str, route: str, status: int | str, seconds: float, level: int) -> None:
    """Write the access-log line of a request.

    Args:
        notes: on the request.
        method: of HTTP, or ``gRPC``.
        route: template of the path, or full name of the method.
        status: of the answer, a number or the name of a gRPC code.
        seconds: from the request's headers to the end of its answer.
        level: of the line.
    """
    if not _access_log.isEnabledFor(level):
        return
    duration_ms = round(seconds * 1e3, 2)
    fields: dict[str, Any] = {"request_id": notes.request_id}
    if notes.trace_id is not None:
        fields["trace_id"] = notes.trace_id
    if notes.photos == 1 and notes.fix_status is not None:
        fields["fix_status"] = notes.fix_status
    elif notes.photos > 1:
        fields["photos"] = notes.photos
    if notes.index_version is not None:
        fields["index_version"] = notes.index_version
    rest = " ".join(f"{name}={value}" for name, value in fields.items())
    extra = {**fields, "method": method, "route": route, "status": status, "duration_ms": duration_ms}
    _access_log.log(level, "%s %s %s in %.1f ms %s", method, route, status, seconds * 1e3, rest, extra=extra)


def log_to_stderr(level: str, log_format: LogFormat = "text") -> None:
    """Send sightfix's and uvicorn's messages to stderr, all in one form.

    Args:
        level: debug, info, warning or error.
        log_format: text or json.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if log_format == "json" else TextLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    # Pillow warns about damaged photos with a text for each, in a form of its own; Python would keep every one of them.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    # What a client does wrong is reported to the client; any client could fill the disk with these.
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
    logging.getLogger("sightfix").setLevel(level.upper())
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        # uvicorn brings handlers of its own.
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    logging.getLogger("uvicorn").setLevel("WARNING" if level == "info" else level.upper())


class TextLines(logging.Formatter):
    """``2026-11-23 06:00:00,123 INFO sightfix.service: …``; a traceback follows, indented."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        """One line."""
        return escaped(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:  # noqa: N802
        """A traceback, each line indented and escaped."""
        return "\n".join(f"    {escaped(line)}" for line in super().formatException(ei).split("\n"))

    def formatStack(self, stack_info: str) -> str:  # noqa: N802
        """As `formatException`."""
        return "\n".join(f"    {escaped(line)}" for line in stack_info.split("\n"))


class JsonLines(logging.Formatter):
    """One JSON object a line: time (RFC 3339, UTC), level, logger, message, and what is known of the request."""

    def format(self, record: logging.LogRecord) -> str:
        """One line; JSON escapes what is in it."""
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")[:-6] + "Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        notes = CURRENT.get()
        if notes is not None:
            entry["request_id"] = notes.request_id
            if notes.trace_id is not None:
                entry["trace_id"] = notes.trace_id
        entry.update({name: getattr(record, name) for name in _FIELDS if hasattr(record, name)})
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


def escaped(text: str) -> str:
    """The text on one line, with control characters as backslash escapes."""
    return _CONTROL.sub(lambda found: found.group().encode("unicode_escape").decode(), text)
