"""Refuses requests without a key that allows them, before anything of their body is read."""

import re
from typing import Final

from fastapi import Request
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from service.api_keys import ApiKey, KeyRing
from service.api_keys import Scope as KeyScope
from service.problems import RequestError, problem_response

# Probes cannot hold keys; the page and the documentation hold nothing secret, what they ask for does.
_OPEN: Final = re.compile(
    r"/(livez|healthz|readyz|v2/health/(live|ready)|docs(/.*)?|openapi\.json|static(-offline-docs)?/.*|favicon\.ico)?"
)
_ADMIN: Final = re.compile(r"(/v1)?/(jobs([/:].*)?|indexes/[^/]+/activate)", re.DOTALL)


class KeyGuard:
    """ASGI middleware: `Authorization: Bearer KEY`, or `X-API-Key: KEY`.

    Args:
        app: what to guard.
        keys: who may come in.
    """

    def __init__(self, app: ASGIApp, keys: KeyRing) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the app for who may, else answer 401 or 403."""
        wanted = scope_of(scope["path"]) if scope["type"] == "http" else None
        if wanted is None:
            await self._app(scope, receive, send)
            return
        try:
            headers = Headers(scope=scope)
            presented = presented_key(headers.get("authorization"), headers.get("x-api-key"))
            # Whose key it is: what one has opened belongs to it.
            scope.setdefault("state", {})["api_key"] = check_key(self._keys, presented, wanted).name
        except RequestError as error:
            response = problem_response(Request(scope), error)
            if error.code == "unauthenticated":
                response.headers["WWW-Authenticate"] = 'Bearer realm="sightfix"'
            # The body was not read, so the connection cannot be used again.
            response.headers["Connection"] = "close"
            await response(scope, receive, send)
            return
        await self._app(scope, receive, send)


def check_key(keys: KeyRing, presented: str | None, wanted: KeyScope) -> ApiKey:
    """Refuse who may not come in.

    Args:
        keys: who may.
        presented: the key that came with the request, if one did.
        wanted: what it must allow.

    Returns:
        the key.

    Raises:
        RequestError: no key, or an unknown one (``unauthenticated``), or one for something else (``forbidden``).
    """
    if presented is None:
        raise RequestError(
            "this server wants an API key",
            code="unauthenticated",
            remedy="Send it as Authorization: Bearer KEY, or as X-API-Key: KEY",
        )
    key = keys.find(presented)
    if key is None:
        raise RequestError("the API key is unknown", code="unauthenticated", remedy="Ask whoever runs the server")
    if not key.allows(wanted):
        raise RequestError(
            f"the API key {key.name!r} may not be used for {wanted}",
            code="forbidden",
            remedy=f"Use one with the scope {wanted}",
        )
    return key


def scope_of(path: str) -> KeyScope | None:
    """What a key must allow for a path; None where no key is wanted."""
    # Routes end with `$`, which lets one line feed pass: what they serve must need what it needs without.
    path = path.removesuffix("\n")
    if _OPEN.fullmatch(path):
        return None
    return "admin" if _ADMIN.fullmatch(path) else "localize"


def presented_key(authorization: str | None, api_key: str | None) -> str | None:
    """The key in a request's headers, or None."""
    if api_key:
        return api_key
    scheme, _, key = (authorization or "").partition(" ")
    return key.strip() or None if scheme.lower() == "bearer" else None
