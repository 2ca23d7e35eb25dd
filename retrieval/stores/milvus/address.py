"""``milvus://…``: where a Milvus is, without any secret."""

from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote, urlsplit

from retrieval.errors import ParameterError

_REMEDY: Final = (
    "Write milvus://HOST:19530, milvus://HOST:19530/DATABASE, milvus+tls://HOST:19530, "
    "or milvus:///path/to/file.db for milvus-lite"
)
_DEFAULT_PORT: Final = 19530


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
