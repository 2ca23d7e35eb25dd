"""A typed Python client of a sightfix server.

with SightfixClient("http://127.0.0.1:8080") as client:
    answer = client.localize(Path("photo.jpg"), top_k=5)
    print(answer.status, answer.fix)
"""

from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import httpx
from pydantic import ValidationError

from retrieval.answer import LocalizeAnswer, Problem
from retrieval.errors import ImageError, ServerError, SightfixError
from retrieval.geo import GeoPrior
from retrieval.images import DEFAULT_LIMITS, MEDIA_TYPES, read_image_bytes, sniff_format

DEFAULT_TIMEOUT_S: Final = 30.0


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
        retry_after = response.headers.get("retry-after", "")
        self.retry_after_s = float(retry_after) if retry_after.isdigit() else None
        what = self.problem.detail.rstrip(".") if self.problem else f"the server answered {self.status}"
        super().__init__(what, where=str(response.url), code=self.problem.code if self.problem else None)


class SightfixClient:
    """Talks to one sightfix server over HTTP. Use it in a `with` block, or call `close`.

    Args:
        url: of the server, such as ``http://127.0.0.1:8080``.
        timeout_s: for one request.
    """

    def __init__(self, url: str = "http://127.0.0.1:8080", *, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        # A proxy of the environment is for other hosts, whatever its no_proxy says.
        local = httpx.URL(url).host in ("localhost", "127.0.0.1", "::1")
        self._http = httpx.Client(base_url=url, timeout=timeout_s, trust_env=not local)

    def localize(
        self,
        photo: Path | bytes,
        *,
        top_k: int = 10,
        geo_prior: GeoPrior | None = None,
        min_score: float | None = None,
    ) -> LocalizeAnswer:
        """Where was this photo taken?

        Args:
            photo: a file, or the encoded bytes.
            top_k: how many matches to return.
            geo_prior: where the answer must lie.
            min_score: leave out matches below this cosine.

        Raises:
            ImageError: the file cannot be read, or is of no format that a server accepts.
            ProblemError: the server refused.
            ServerError: it cannot be reached, or does not speak our protocol.
        """
        data = photo if isinstance(photo, bytes) else read_image_bytes(photo, DEFAULT_LIMITS)
        try:
            media_type = MEDIA_TYPES[sniff_format(data)][0]
        except ImageError as error:
            where = None if isinstance(photo, bytes) else str(photo)
            raise ImageError(error.what, where=where, remedy=error.remedy, code=error.code) from error
        parameters: dict[str, Any] = {"top_k": top_k}
        if geo_prior is not None:
            parameters["geo_prior"] = f"{geo_prior.lat!r},{geo_prior.lon!r},{geo_prior.radius_m!r}"
        if min_score is not None:
            parameters["min_score"] = min_score
        response = self._request(
            "POST", "/localize", content=data, params=parameters, headers={"Content-Type": media_type}
        )
        try:
            return LocalizeAnswer.model_validate_json(response.content)
        except ValidationError as error:
            raise ServerError("the answer is not a sightfix answer", where=str(response.url)) from error

    def is_ready(self) -> bool:
        """Whether the server can localize photos now.

        Raises:
            ServerError: it cannot be reached.
        """
        try:
            self._request("GET", "/readyz")
        except ProblemError:
            return False
        return True

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _request(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        try:
            response = self._http.request(method, path, **arguments)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ServerError(
                f"the server cannot be reached ({error})",
                where=str(self._http.base_url),
                remedy="Check the address, and that the server runs: sightfix serve",
            ) from error
        if response.is_error:
            raise ProblemError(response)
        return response
