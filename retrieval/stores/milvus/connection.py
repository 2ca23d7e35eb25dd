"""A connection to Milvus, whose failures are told as ours."""

import contextlib
import logging
import os
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

from retrieval.errors import MissingExtraError, StoreUnavailableError
from retrieval.stores.milvus.address import MilvusAddress

TOKEN_VARIABLE: Final = "MILVUS_TOKEN"  # noqa: S105 - the name, not the secret

_CONNECT_S: Final = 10.0
# Codes of Milvus: a collection, an index or an alias is not there. A server says 4 when it has too much to do.
_NOT_THERE: Final = frozenset({100, 700, 1600})
_LITE_NOT_THERE: Final = 4
# milvus-lite opens a file for one process and keeps it open for all who ask there: how many do, by the file's path.
_opening = threading.Lock()
_lite_users: Counter[str] = Counter()


class MilvusConnection:
    """What everything here asks Milvus through. Safe to share between threads.

    Args:
        address: where it is. A token, or ``user:password``, is read from `MILVUS_TOKEN`.
        timeout_s: how long one question may take.

    Raises:
        MissingExtraError: pymilvus is not installed.
        StoreUnavailableError: there is no Milvus, or it lets nobody in with this token.
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
        """Tell Milvus's failures as ours.

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
        """Hang up; the last one to do so lets go of a file of milvus-lite."""
        with contextlib.suppress(Exception), _opening:
            self.client.close()
            if self._lite_file is not None:
                _lite_users[self._lite_file] -= 1
                if _lite_users[self._lite_file] == 0:
                    from milvus_lite.server_manager import server_manager_instance

                    server_manager_instance.release_server(self._lite_file)


def _is_milvus(error: Exception) -> bool:
    """Whether pymilvus raised it, or gRPC below it: which this floor does not import."""
    return any(kind.__module__.split(".")[0] in ("pymilvus", "grpc") for kind in type(error).__mro__)


def _sentence(error: Exception) -> str:
    text = str(getattr(error, "message", "") or error).strip().splitlines()
    return (text[0] if text else type(error).__name__).rstrip(".")[:300]
