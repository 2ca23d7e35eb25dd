"""One request to a server: what it is, how often it is sent, and what can go wrong on the way.

A request is repeated only where that does no harm. Refused before anything was done (429, 503), or never delivered:
always. Broken off on the way (a lost connection, 408, 502): only what may be done twice. Never after a time-out: a
server that is too slow is not helped by asking it again.

Pauses grow exponentially with full jitter (Brooker, Exponential Backoff And Jitter, AWS Architecture Blog 2015), so
that clients refused together do not come back together; what `Retry-After` asks for comes on top.
"""

import asyncio
import math
import os
import ssl
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, TypeVar

from pydantic import ValidationError

from retrieval.errors import ParameterError, ServerError, SightfixError
from sightfix.client.answers import Problem

if TYPE_CHECKING:
    import httpx
    from tenacity import AsyncRetrying, RetryCallState

DEFAULT_URL: Final = "http://127.0.0.1:8080"
DEFAULT_TIMEOUT_S: Final = 30.0
Lane = Literal["robot", "bulk"]
Verify = bool | Path | ssl.SSLContext
Certificate = tuple[Path, Path]
Answer = TypeVar("Answer")

# No connection was made: the request did not reach the server.
_UNREACHABLE: Final = "server_unreachable"
# The connection broke before the answer arrived: the server may have handled the request, or not.
_CONNECTION_LOST: Final = "connection_lost"
# Overload, not ready.
_REFUSED_STATUS: Final = frozenset({429, 503})
# A body that came too slowly, a proxy whose server restarts. Not 504: the deadline has passed.
_BROKEN_STATUS: Final = frozenset({408, 502})
# Servers accept no longer deadline; with a longer one the client waits for the answer all the same.
_LONGEST_DEADLINE_MS: Final = 600_000.0


class ProblemError(SightfixError):
    """The server answered with a problem (RFC 9457).

    Attributes:
        status: the HTTP status.
        problem: the whole problem, or None when the body was something else.
        retry_after_s: when to try again, if the server said so.
    """

    default_code = "server_problem"

    def __init__(self, response: "httpx.Response") -> None:
        self.status = response.status_code
        try:
            self.problem: Problem | None = Problem.model_validate_json(response.content)
        except ValidationError:
            self.problem = None
        self.retry_after_s = retry_after_s(response.headers.get("retry-after"))
        what = self.problem.detail.rstrip(".") if self.problem else f"the server answered {self.status}"
        super().__init__(what, where=str(response.url), code=self.problem.code if self.problem else None)


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often to try again, and for how long.

    Attributes:
        max_attempts: requests in all; 1 never tries again.
        base_s: the first pause is at most so long, each further one twice that.
        max_pause_s: of one backoff; a longer `Retry-After` is honoured nevertheless.
        total_s: no pause ends later than so long after the call began. A call's own deadline holds, too.

    Raises:
        ParameterError: a number outside its range.
    """

    max_attempts: int = 4
    base_s: float = 0.2
    max_pause_s: float = 5.0
    total_s: float = 30.0

    def __post_init__(self) -> None:
        if self.max_attempts < 1 or min(self.base_s, self.max_pause_s, self.total_s) < 0.0:
            raise ParameterError(
                f"{self} cannot be followed", remedy="Give at least one attempt, and no time below 0 seconds"
            )


@dataclass(frozen=True, slots=True)
class Connection:
    """Address of a server, and credentials.

    Attributes:
        url: such as ``http://127.0.0.1:8080``.
        timeout_s: for connecting, sending and reading, each.
        api_key: sent as a bearer token, or None.
        verify: whether to check the server's certificate: with the machine's authorities, or those of a PEM file.
        cert: our own certificate and its key, PEM files, for servers that want one (mTLS).
    """

    url: str = DEFAULT_URL
    timeout_s: float = DEFAULT_TIMEOUT_S
    api_key: str | None = None
    verify: Verify = True
    cert: Certificate | None = None

    def http_client(self) -> "httpx.AsyncClient":
        """A client for this server.

        Raises:
            ParameterError: the PEM files cannot be read.
        """
        import httpx  # here, because it takes a quarter of the time to import the client

        # A proxy of the environment is for other hosts, whatever its no_proxy says.
        local = httpx.URL(self.url).host in ("localhost", "127.0.0.1", "::1")
        headers = {} if self.api_key is None else {"Authorization": f"Bearer {self.api_key}"}
        return httpx.AsyncClient(
            base_url=self.url, timeout=self.timeout_s, trust_env=not local, headers=headers, verify=self._verify()
        )

    def _verify(self) -> bool | ssl.SSLContext:
        if self.cert is None and not isinstance(self.verify, Path):
            return self.verify
        try:
            context = self._context()
            if self.cert is not None:
                context.load_cert_chain(*self.cert)
        except (OSError, ssl.SSLError) as error:
            raise ParameterError(
                f"the certificates cannot be read ({error})", remedy="Give PEM files: verify=ca, cert=(cert, key)"
            ) from error
        return context

    def _context(self) -> ssl.SSLContext:
        if isinstance(self.verify, ssl.SSLContext):
            return self.verify
        context = ssl.create_default_context(cafile=self.verify if isinstance(self.verify, Path) else None)
        if self.verify is False:
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return context


@dataclass(frozen=True, slots=True)
class Call(Generic[Answer]):
    """One request, which may be sent several times, and how to read its answer.

    Attributes:
        method, path: of the request.
        read: makes the answer of a response that is no error.
        arguments: further ones of httpx's `request`.
        fingerprint: of the model that answered, if the answer says so.
        repeatable: whether it does no harm to do it twice.
        timeout_s: for connecting, sending and reading, each; None for the client's.
    """

    method: str
    path: str
    read: Callable[["httpx.Response"], Answer]
    arguments: dict[str, Any] = field(default_factory=dict)
    fingerprint: Callable[[Answer], str | None] = lambda _: None
    repeatable: bool = True
    timeout_s: float | None = None

    def answer(self, response: "httpx.Response") -> Answer:
        """Read a response.

        Raises:
            ProblemError: the server refused.
            ServerError: it does not speak our protocol.
        """
        if response.is_error:
            raise ProblemError(response)
        try:
            return self.read(response)
        except ValidationError as error:
            raise ServerError("the answer is not a sightfix answer", where=str(response.url)) from error

    def request(self, lane: Lane | None, left_s: float | None) -> dict[str, Any]:
        """The arguments of httpx's `request`.

        Args:
            lane: robot goes before bulk; None leaves it to the server.
            left_s: seconds until the caller's deadline; None for none.
        """
        headers = dict(self.arguments.get("headers", {}))
        if lane is not None:
            headers["X-Lane"] = lane
        if left_s is not None:
            headers["X-Deadline-Ms"] = f"{min(max(left_s * 1e3, 1.0), _LONGEST_DEADLINE_MS):.0f}"
        timeout = {} if self.timeout_s is None else {"timeout": self.timeout_s}
        return {**self.arguments, **timeout, "method": self.method, "url": self.path, "headers": headers}


class Budget:
    """What is left of the attempts and the time of one call, over all requests that it takes.

    Args:
        policy: how often, and for how long.
        deadline_s: seconds from now after which the answer is of no use; None for none.
        clock: monotonic seconds.
    """

    def __init__(
        self, policy: RetryPolicy, deadline_s: float | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._policy, self._clock = policy, clock
        self._failures = 0
        begun = clock()
        self._deadline = None if deadline_s is None else begun + deadline_s
        self._end = begun + min(policy.total_s, math.inf if deadline_s is None else deadline_s)

    @property
    def left_s(self) -> float | None:
        """Seconds until the deadline, at least a millisecond; None without one."""
        return None if self._deadline is None else max(self._deadline - self._clock(), 1e-3)

    def retrying(
        self, *, repeatable: bool = True, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    ) -> "AsyncRetrying":
        """Repeats a coroutine as long as it fails with an error worth another attempt and the budget allows it.

        Args:
            repeatable: whether the request may be done twice.
            sleep: waits so many seconds.
        """
        from tenacity import AsyncRetrying, retry_if_exception, wait_exception, wait_random_exponential

        return AsyncRetrying(
            retry=retry_if_exception(lambda error: _is_worth_repeating(error, repeatable)),
            wait=wait_random_exponential(self._policy.base_s, self._policy.max_pause_s) + wait_exception(_asked_pause),
            stop=self._is_spent,
            sleep=sleep,
            reraise=True,
        )

    def _is_spent(self, state: "RetryCallState") -> bool:
        self._failures += 1
        return self._failures >= self._policy.max_attempts or self._clock() + state.upcoming_sleep >= self._end


def _is_worth_repeating(error: BaseException, repeatable: bool) -> bool:
    if isinstance(error, ProblemError):
        return error.status in _REFUSED_STATUS or (repeatable and error.status in _BROKEN_STATUS)
    if isinstance(error, SightfixError):
        return error.code == _UNREACHABLE or (repeatable and error.code == _CONNECTION_LOST)
    return False


def _asked_pause(error: BaseException) -> float:
    """Seconds that the server asked to wait."""
    return (error.retry_after_s or 0.0) if isinstance(error, ProblemError) else 0.0


class Sender:
    """Sends calls to one server; the deadline bounds all of a call, pauses and last byte included.

    Args:
        connection: address and credentials.
        retry: how often and for how long to try again.
    """

    def __init__(self, connection: Connection, retry: RetryPolicy) -> None:
        self._url = connection.url
        self._retry = retry
        self._http = connection.http_client()

    def budget(self, deadline_ms: float | None = None) -> Budget:
        """Begin a call.

        Args:
            deadline_ms: from now; None for none.

        Raises:
            ParameterError: it has passed already.
        """
        if deadline_ms is not None and not deadline_ms > 0.0:
            raise ParameterError(f"deadline_ms {deadline_ms} is not above 0", remedy="Give milliseconds from now")
        return Budget(self._retry, None if deadline_ms is None else deadline_ms / 1e3)

    async def answer(self, call: Call[Answer], budget: Budget, lane: Lane | None = None) -> Answer:
        """Send a call until it is answered.

        Args:
            call: the request.
            budget: attempts and time left.
            lane: robot goes before bulk; None leaves it to the server.

        Raises:
            ProblemError: the server refused.
            ServerError: it cannot be reached, did not answer in time, or does not speak our protocol.
        """
        return await budget.retrying(repeatable=call.repeatable)(self._once, call, budget, lane)

    async def once(self, call: Call[Answer]) -> Answer:
        """Send a call a single time, without a deadline; raises as `answer`."""
        return await self._once(call, self.budget(), None)

    async def in_time(self, work: Awaitable[Answer], budget: Budget) -> Answer:
        """Wait for work on this machine, no longer than the call's deadline.

        Raises:
            ServerError: the deadline has passed (``server_timeout``).
        """
        try:
            async with asyncio.timeout(budget.left_s):
                return await work
        except TimeoutError as error:
            raise network_error(self._url, error) from error

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def _once(self, call: Call[Answer], budget: Budget, lane: Lane | None) -> Answer:
        import httpx

        left_s = budget.left_s
        try:
            async with asyncio.timeout(left_s):
                return call.answer(await self._http.request(**call.request(lane, left_s)))
        # A closed client and the like are mistakes of the caller and not among these.
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
            raise network_error(self._url, error) from error


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
    import httpx

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
            code=_UNREACHABLE,
        )
    if isinstance(error, (httpx.TimeoutException, TimeoutError)):
        return ServerError(
            "the server did not answer in time",
            where=where,
            remedy="Give it more time, or check whether it is overloaded or far away",
            code="server_timeout",
        )
    return ServerError(
        f"the connection broke before the answer came ({reason})",
        where=where,
        remedy="Read the server's log; a proxy may have cut it off, or a server that wants a certificate of yours",
        code=_CONNECTION_LOST,
    )


def _reason(error: BaseException) -> str:
    """The first cause: httpx and anyio wrap it in sentences that say less."""
    below: BaseException | None = error
    while below is not None:
        error = below.exceptions[0] if isinstance(below, BaseExceptionGroup) else below
        below = error.__cause__ or error.__context__
    if isinstance(error, ConnectionError) and error.errno:
        return os.strerror(error.errno)
    return str(error) or type(error).__name__
