"""What can go wrong between a client and a server."""

import math
import os
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

import httpx
from pydantic import ValidationError

from retrieval.errors import ServerError, SightfixError
from retrieval.localize.answer import Problem

# No connection was made: the server knows nothing of the request.
UNREACHABLE: Final = "server_unreachable"
# The connection broke before the answer was here: nobody knows what the server did with the request.
CONNECTION_LOST: Final = "connection_lost"


class ProblemError(SightfixError):
    """The server answered with a problem (RFC 9457).

    Attributes:
        status: the HTTP status.
        problem: the whole problem, or None when the body was something else.
        retry_after_s: when to try again, if the server said so.
    """

    default_code = "server_problem"

    def __init__(self, response: httpx.Response) -> None:
        self.status = response.status_code
        try:
            self.problem: Problem | None = Problem.model_validate_json(response.content)
        except ValidationError:
            self.problem = None
        self.retry_after_s = retry_after_s(response.headers.get("retry-after"))
        what = self.problem.detail.rstrip(".") if self.problem else f"the server answered {self.status}"
        super().__init__(what, where=str(response.url), code=self.problem.code if self.problem else None)


def retry_after_s(header: str | None, now: datetime | None = None) -> float | None:
    """How long a `Retry-After` header (RFC 9110, 10.2.3) asks to wait.

    Args:
        header: seconds, or an HTTP date.
        now: for dates; the clock of this machine if left out.

    Returns:
        seconds, 0 for a date that has passed; None without a header, or with one that makes no sense.
    """
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            date = parsedate_to_datetime(header)
        except ValueError:
            return None
        # A date without a zone is in UTC by RFC 9110.
        seconds = ((date if date.tzinfo else date.replace(tzinfo=UTC)) - (now or datetime.now(UTC))).total_seconds()
        return max(seconds, 0.0)
    return seconds if math.isfinite(seconds) and seconds >= 0.0 else None


def network_error(base_url: str, error: Exception) -> ServerError:
    """What went wrong on the way to a server, in words that say what to do.

    Args:
        base_url: of the server.
        error: as httpx, or asyncio's clock, raised it.
    """
    where, reason = base_url.rstrip("/"), _reason(error)
    if isinstance(error, (httpx.InvalidURL, httpx.UnsupportedProtocol)):
        return ServerError(f"this is no address of a server ({reason})", where=where, remedy="Give http://host:port")
    if "CERTIFICATE_VERIFY_FAILED" in reason:
        return ServerError(
            f"the server's certificate is not trusted ({reason})", where=where, remedy="Give its authority: verify=ca"
        )
    if isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout)):
        return ServerError(
            f"the server cannot be reached ({reason})",
            where=where,
            remedy="Check the address, and that the server runs: sightfix serve",
            code=UNREACHABLE,
        )
    if isinstance(error, (httpx.TimeoutException, TimeoutError)):
        return ServerError(
            "the server did not answer in time",
            where=where,
            remedy="Give it more time, or look whether it is overloaded or far away",
            code="server_timeout",
        )
    return ServerError(
        f"the connection broke before the answer came ({reason})",
        where=where,
        remedy="Look into the server's log; a proxy may have cut it off, or a server that wants a certificate of yours",
        code=CONNECTION_LOST,
    )


def _reason(error: BaseException) -> str:
    """What lies at the bottom: httpx and anyio wrap it in sentences that say less."""
    below: BaseException | None = error
    while below is not None:
        error = below.exceptions[0] if isinstance(below, BaseExceptionGroup) else below
        below = error.__cause__ or error.__context__
    if isinstance(error, ConnectionError) and error.errno:
        return os.strerror(error.errno)
    return str(error) or type(error).__name__
