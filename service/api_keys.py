"""API keys and their scopes. Only hashes are kept, in a file that is read again when it changes.

A key is 256 random bits, so a plain SHA-256 of it reveals nothing, and no slow password hash is needed.
"""

import hashlib
import hmac
import logging
import os
import re
import secrets
import threading
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Send
from starlette.types import Scope as AsgiScope

from retrieval.artefact import replace_file, storage_errors
from retrieval.errors import ParameterError, SightfixError
from service.problems import RequestError, problem_response

_log = logging.getLogger("sightfix.service")
Scope = Literal["localize", "admin"]
SCOPES: Final[tuple[Scope, ...]] = ("localize", "admin")
PREFIX: Final = "sfx_"

# A change is seen at the latest after this time; a stat for every request would be waste.
_LOOK_EVERY_S: Final = 1.0

_HEAD: Final = "# Hashes of API keys. Made by `sightfix key`; remove a table to withdraw its key.\n\n"

# Probes cannot hold keys; the page and the documentation hold nothing secret, their requests need keys.
_OPEN: Final = re.compile(
    r"/(livez|healthz|readyz|v2/health/(live|ready)|docs(/.*)?|openapi\.json|static(-offline-docs)?/.*|favicon\.ico)?"
)

_ADMIN: Final = re.compile(r"(/v1)?/(jobs([/:].*)?|indexes/[^/]+/activate)", re.DOTALL)


class ApiKeyError(SightfixError):
    """A file of API keys that cannot be read."""

    default_code = "api_keys"


class ApiKey(BaseModel):
    """One key in the file.

    Attributes:
        name: of its owner, for people and logs.
        sha256: of the key, in hex.
        scopes: what it allows; `admin` includes `localize`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1, max_length=100, pattern=r"^[\w .@-]+$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    scopes: tuple[Scope, ...] = Field(min_length=1)

    def allows(self, scope: Scope) -> bool:
        """Whether the key has the scope."""
        return scope in self.scopes or "admin" in self.scopes


class _KeyFile(BaseModel):
    model_config = ConfigDict(extra="forbid")

    key: list[ApiKey] = Field(default_factory=list)


def read_keys(path: Path) -> list[ApiKey]:
    """Read a file of keys (TOML, an array of tables `key`).

    Raises:
        ApiKeyError: it cannot be read, is not TOML, has an unknown or wrong value, or names or keys twice.
    """
    try:
        keys = _KeyFile.model_validate(tomllib.loads(path.read_text(encoding="utf-8"))).key
    except OSError as error:
        raise ApiKeyError(
            f"the API keys cannot be read ({error.strerror})",
            where=str(path),
            remedy="Make a key: sightfix key NAME --file FILE",
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ApiKeyError(f"the API keys are not TOML ({error})", where=str(path)) from error
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        at = ".".join(str(part) for part in first["loc"])
        raise ApiKeyError(f"{at}: {first['msg']}", where=str(path), remedy="See docs/how-to/secure.md") from error
    for what, values in (("name", [key.name for key in keys]), ("hash", [key.sha256 for key in keys])):
        twice = {value for value in values if values.count(value) > 1}
        if twice:
            raise ApiKeyError(f"the {what} {min(twice)} occurs twice", where=str(path))
    return keys


def make_key(path: Path, name: str, scopes: tuple[Scope, ...]) -> str:
    """Make a key and add its hash to a file, which is made if it does not exist, readable by its owner only.

    Returns:
        the key; it is written nowhere else.

    Raises:
        ApiKeyError: the file cannot be read, or the name is taken.
        ParameterError: the name has other characters than letters, digits and - _ . @.
        StorageError: the disk refuses; the file stays as it was.
    """
    known = read_keys(path) if path.exists() else []
    if any(key.name == name for key in known):
        raise ApiKeyError(f"there is a key of that name, {name!r}", where=str(path), remedy="Choose another name")
    key = PREFIX + secrets.token_urlsafe(32)
    try:
        made = ApiKey(name=name, sha256=_hash(key), scopes=scopes)
    except ValidationError as error:
        raise ParameterError(
            f"{name!r} cannot be the name of a key", remedy="Use letters, digits and - _ . @"
        ) from error
    text = path.read_text(encoding="utf-8").rstrip() + "\n\n" if known else _HEAD
    quoted = ", ".join(f'"{scope}"' for scope in made.scopes)
    text += f'[[key]]\nname = "{made.name}"\nsha256 = "{made.sha256}"\nscopes = [{quoted}]\n'
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        before = os.umask(0o077)
        try:
            replace_file(path, text.encode())
        finally:
            os.umask(before)
    return key


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


@dataclass
class KeyRing:
    """The keys of a server, read again when their file changes. A file that cannot be read leaves the old ones.

    Args:
        path: of the file.

    Raises:
        ApiKeyError: it cannot be read at the start.
    """

    path: Path

    def __post_init__(self) -> None:
        # The stamp first: a file replaced between the two is then read again, not taken for the one that was read.
        self._stamp = self._file_stamp()
        self._keys = read_keys(self.path)
        self._looked = time.monotonic()
        self._lock = threading.Lock()

    def find(self, key: str) -> ApiKey | None:
        """The entry of a presented key, or None; takes equally long for every key."""
        self._renew()
        presented = _hash(key)
        found = None
        for known in self._keys:
            if hmac.compare_digest(known.sha256, presented):
                found = known
        return found

    def _renew(self) -> None:
        with self._lock:
            now = time.monotonic()
            if now - self._looked < _LOOK_EVERY_S:
                return
            self._looked = now
            stamp = self._file_stamp()
            if stamp == self._stamp:
                return
            self._stamp = stamp
            try:
                self._keys = read_keys(self.path)
            except ApiKeyError as error:
                _log.error("the API keys stay as they were: %s", error)
            else:
                _log.info("%d API keys were read again", len(self._keys))

    def _file_stamp(self) -> tuple[int, int, int] | None:
        try:
            status = self.path.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino


class KeyGuard:
    """ASGI middleware that rejects requests without a key that allows them, before their body is read.

    The key comes as `Authorization: Bearer KEY`, or `X-API-Key: KEY`.

    Args:
        app: what to guard.
        keys: that are accepted.
    """

    def __init__(self, app: ASGIApp, keys: KeyRing) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """Run the app if the key allows it, else answer 401 or 403."""
        wanted = scope_of(scope["path"]) if scope["type"] == "http" else None
        if wanted is None:
            await self._app(scope, receive, send)
            return
        try:
            headers = Headers(scope=scope)
            presented = presented_key(headers.get("authorization"), headers.get("x-api-key"))
            # A track belongs to the key that opened it.
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


def check_key(keys: KeyRing, presented: str | None, wanted: Scope) -> ApiKey:
    """Check a key.

    Args:
        keys: that are accepted.
        presented: the key that came with the request, if one did.
        wanted: what it must allow.

    Returns:
        the key.

    Raises:
        RequestError: no key, or an unknown one (``unauthenticated``), or one without the scope (``forbidden``).
    """
    if presented is None:
        raise RequestError(
            "this server requires an API key",
            code="unauthenticated",
            remedy="Send it as Authorization: Bearer KEY, or as X-API-Key: KEY",
        )
    key = keys.find(presented)
    if key is None:
        raise RequestError("the API key is unknown", code="unauthenticated", remedy="Ask the operator of the server")
    if not key.allows(wanted):
        raise RequestError(
            f"the API key {key.name!r} does not have the scope {wanted}",
            code="forbidden",
            remedy=f"Use one with the scope {wanted}",
        )
    return key


def scope_of(path: str) -> Scope | None:
    """The scope that a path requires; None where no key is required."""
    # Routes end with `$`, which also matches before a line feed: such a path requires the same scope.
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
