"""A sightfix server over HTTP, with nothing but the standard library: ROS 2 Humble has Python 3.10."""

import json
import urllib.error
import urllib.parse
import urllib.request
from typing import Any


class NotLocalizedError(Exception):
    """A frame that was not localized.

    Attributes:
        code: the server's stable code, or ``unreachable``.
        retry_after_s: how long the server wants to be left alone; 0 if it does not say.
    """

    def __init__(self, code: str, detail: str, retry_after_s: float = 0.0) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.retry_after_s = retry_after_s


class Server:
    """One sightfix server. A frame is asked for once: a camera has a newer one before a retry would be answered.

    Args:
        url: such as ``http://127.0.0.1:8080``.
        api_key: for servers that want one.
        timeout_s: for connecting and for each read.
    """

    def __init__(self, url: str, api_key: str | None = None, timeout_s: float = 5.0) -> None:
        self._url = url.rstrip("/")
        if urllib.parse.urlsplit(self._url).scheme not in ("http", "https"):
            raise ValueError(f"{url!r} is no address of a server: give http://host:port")
        self._headers = {} if not api_key else {"Authorization": f"Bearer {api_key}"}
        self._timeout_s = timeout_s
        # A proxy of the environment is for other hosts.
        local = urllib.parse.urlsplit(self._url).hostname in ("localhost", "127.0.0.1", "::1")
        handlers = [urllib.request.ProxyHandler({})] if local else []
        self._opener = urllib.request.build_opener(*handlers)

    def info(self) -> dict[str, Any]:
        """What is being served.

        Raises:
            NotLocalizedError: it cannot be reached, or refuses.
        """
        return self._ask(urllib.request.Request(f"{self._url}/info", headers=self._headers))  # noqa: S310

    def localize(self, photo: bytes, *, prior: str | None = None, deadline_ms: int = 1000) -> dict[str, Any]:
        """Where was this photo taken?

        Args:
            photo: JPEG, PNG or WebP.
            prior: ``lat,lon,radius_m`` in which the answer must lie.
            deadline_ms: when the answer is of no use any more.

        Raises:
            NotLocalizedError: it cannot be reached, or refuses.
        """
        query = {"top_k": "5"} if prior is None else {"top_k": "5", "geo_prior": prior}
        kinds = {b"\x89PNG": "image/png", b"RIFF": "image/webp"}
        kind = kinds.get(photo[:4], "image/jpeg")
        headers = {**self._headers, "Content-Type": kind, "X-Lane": "robot", "X-Deadline-Ms": str(deadline_ms)}
        url = f"{self._url}/localize?{urllib.parse.urlencode(query)}"
        return self._ask(urllib.request.Request(url, data=photo, headers=headers, method="POST"))  # noqa: S310

    def _ask(self, request: urllib.request.Request) -> dict[str, Any]:
        try:
            with self._opener.open(request, timeout=self._timeout_s) as response:
                answer: dict[str, Any] = json.load(response)
                return answer
        except urllib.error.HTTPError as error:
            raise _refusal(error) from error
        except (OSError, ValueError) as error:  # no connection, a time-out, no JSON
            raise NotLocalizedError("unreachable", f"{self._url}: {error}") from error


def _refusal(error: urllib.error.HTTPError) -> NotLocalizedError:
    with error:
        try:
            problem = json.load(error)
            code, detail = str(problem["code"]), str(problem["detail"])
        except (OSError, ValueError, LookupError, TypeError):
            code, detail = f"http_{error.code}", str(error.reason)
    wait = error.headers.get("Retry-After", "")
    return NotLocalizedError(code, detail, float(wait) if wait.isdigit() else 0.0)
