"""A connection to Milvus: its address, what indexes and versions are called there, and its failures as ours.

Names in Milvus hold letters, digits and underscores only. An index's alias is ``sightfix__<index>`` and a version's
collection ``sightfix__<index>__<version>``; every other character than a letter or digit is written ``_`` and two
hexadecimal digits, so that two underscores only separate.
"""

import contextlib
import logging
import os
import re
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from retrieval.errors import MissingExtraError, ParameterError, StoreUnavailableError

RECORDS_NAME: Final = "sightfix_versions"
_PREFIX: Final = "sightfix"
_ESCAPED: Final = re.compile(r"_([0-9a-f]{2})")
_PLAIN: Final = re.compile(r"[A-Za-z0-9]")

_REMEDY: Final = (
    "Write milvus://HOST:19530, milvus://HOST:19530/DATABASE, milvus+tls://HOST:19530, "
    "or milvus:///path/to/file.db for milvus-lite"
)
_DEFAULT_PORT: Final = 19530
TOKEN_VARIABLE: Final = "MILVUS_TOKEN"  # noqa: S105 - the name, not the secret
_CONNECT_S: Final = 10.0

# Codes of Milvus: a collection, an index or an alias is not there. A server says 4 when it has too much to do.
_NOT_THERE: Final = frozenset({100, 700, 1600})
_LITE_NOT_THERE: Final = 4

# milvus-lite opens a file for one process and keeps it open for all its clients: how many, by the file's path.
_lite_users: Counter[str] = Counter()
_opening = threading.Lock()


def alias_of(index: str) -> str:
    """The alias that names an index's current version."""
    return f"{_PREFIX}__{_escape(index)}"


def collection_of(index: str, version: str) -> str:
    """The collection of a version."""
    return f"{alias_of(index)}__{_escape(version)}"


def version_of(collection: str) -> tuple[str, str] | None:
    """Index and version of a collection, or None where it is not one of ours."""
    parts = collection.split("__")
    return (_unescape(parts[1]), _unescape(parts[2])) if len(parts) == 3 and parts[0] == _PREFIX else None


@dataclass(frozen=True, slots=True)
class MilvusAddress:
    """Where a Milvus is.

    Attributes:
        uri: as pymilvus wants it: a URL, or the path of a milvus-lite database.
        database: within the server, or None for its default.
        shown: as the user wrote it, for messages.
    """

    uri: str
    database: str | None
    shown: str

    @property
    def lite_file(self) -> str | None:
        """The file of milvus-lite, or None where it is a server."""
        return None if self.uri.startswith(("http://", "https://")) else self.uri

    @classmethod
    def parse(cls, text: str) -> "MilvusAddress":
        """Read an address.

        Raises:
            ParameterError: it is none, or carries a password: addresses are shown in messages.
        """
        # First, for what follows repeats the text.
        if "@" in text or "?" in text or "#" in text:
            raise ParameterError(
                "the address of a store must carry neither a password nor parameters",
                remedy=f"{_REMEDY}; set MILVUS_TOKEN=user:password (or a token) in the environment",
            )
        try:
            parts = urlsplit(text)
            port = parts.port or _DEFAULT_PORT
        except ValueError as error:
            raise ParameterError(f"the store {text!r} cannot be read ({error})", remedy=_REMEDY) from error
        if parts.scheme not in ("milvus", "milvus+tls"):
            raise ParameterError(f"{text!r} is not the address of a store", remedy=_REMEDY)
        if not parts.hostname:
            if parts.scheme != "milvus" or not parts.path.strip("/"):
                raise ParameterError(f"the store {text!r} names neither a host nor a file", remedy=_REMEDY)
            return cls(unquote(parts.path), None, text)
        database = unquote(parts.path.strip("/")) or None
        if database and "/" in database:
            raise ParameterError(f"the store {text!r} names no database", remedy=_REMEDY)
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        return cls(f"{'https' if parts.scheme == 'milvus+tls' else 'http'}://{host}:{port}", database, text)


class MilvusConnection:
    """What everything here asks Milvus through. Safe to share between threads.

    Args:
        address: where it is. A token, or ``user:password``, is read from `MILVUS_TOKEN`.
        timeout_s: how long one question may take.

    Raises:
        MissingExtraError: pymilvus is not installed.
        StoreUnavailableError: there is no Milvus, or it refuses this token.
    """

    def __init__(self, address: MilvusAddress, timeout_s: float = 30.0) -> None:
        try:
            import pymilvus
        except ImportError as error:
            raise MissingExtraError(
                "Milvus needs pymilvus", remedy="Install it: pip install 'sightfix[milvus]'"
            ) from error
        # They print the traceback of every failure, ours and expected ones included.
        for name in ("pymilvus", "milvus_lite"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self.where = address.shown
        self.timeout_s = timeout_s
        self.types = pymilvus.DataType
        given: dict[str, Any] = {"uri": address.uri, "timeout": _CONNECT_S}
        if token := os.environ.get(TOKEN_VARIABLE):
            given["token"] = token
        if address.database:
            given["db_name"] = address.database
        self._lite_file = address.lite_file
        with self.failures("cannot be reached"), _opening:
            self.client = pymilvus.MilvusClient(**given)
            if self._lite_file is not None:
                _lite_users[self._lite_file] += 1

    @contextlib.contextmanager
    def failures(self, what: str = "does not answer as it should") -> Iterator[None]:
        """Turn failures of Milvus into ours.

        Raises:
            StoreUnavailableError: for whatever pymilvus or gRPC raises.
        """
        try:
            yield
        except Exception as error:
            if not _is_milvus(error):
                raise
            remedy = f"Check that it runs, the address, and {TOKEN_VARIABLE} if it wants one; then try again"
            if self._lite_file is not None:
                remedy = "One process at a time can open a file of milvus-lite (pip install 'sightfix[milvus-lite]')"
            raise StoreUnavailableError(
                f"Milvus {what} ({_sentence(error)})", where=self.where, remedy=remedy
            ) from error

    def is_not_there(self, error: Exception) -> bool:
        """Whether Milvus says that a collection, an index or an alias does not exist."""
        code = getattr(error, "code", None)
        return code in _NOT_THERE or (code == _LITE_NOT_THERE and self._lite_file is not None)

    def close(self) -> None:
        """Close the connection; the last one closes a file of milvus-lite."""
        with contextlib.suppress(Exception), _opening:
            self.client.close()
            if self._lite_file is not None:
                _lite_users[self._lite_file] -= 1
                if _lite_users[self._lite_file] == 0:
                    from milvus_lite.server_manager import server_manager_instance

                    server_manager_instance.release_server(self._lite_file)


def _escape(text: str) -> str:
    return "".join(sign if _PLAIN.match(sign) else f"_{ord(sign):02x}" for sign in text)


def _unescape(text: str) -> str:
    return _ESCAPED.sub(lambda found: chr(int(found[1], 16)), text)


def _is_milvus(error: Exception) -> bool:
    """Whether pymilvus raised it, or gRPC below it: which is not imported here."""
    return any(kind.__module__.split(".")[0] in ("pymilvus", "grpc") for kind in type(error).__mro__)


def _sentence(error: Exception) -> str:
    text = str(getattr(error, "message", "") or error).strip().splitlines()
    return (text[0] if text else type(error).__name__).rstrip(".")[:300]
