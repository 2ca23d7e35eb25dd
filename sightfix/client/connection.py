"""How to reach a server, for both clients."""

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx

from retrieval.errors import ParameterError

DEFAULT_URL: Final = "http://127.0.0.1:8080"
DEFAULT_TIMEOUT_S: Final = 30.0

Verify = bool | Path | ssl.SSLContext
Certificate = tuple[Path, Path]


@dataclass(frozen=True, slots=True)
class Connection:
    """Where a server is, and how to show who we are.

    Attributes:
        url: such as ``http://127.0.0.1:8080``.
        timeout_s: without any answer.
        api_key: sent as a bearer token, or None.
        verify: whether to check the server's certificate: with the machine's authorities, or those of a PEM file.
        cert: our own certificate and its key, PEM files, for servers that want one (mTLS).

    Raises:
        ParameterError: the PEM files cannot be read.
    """

    url: str = DEFAULT_URL
    timeout_s: float = DEFAULT_TIMEOUT_S
    api_key: str | None = None
    verify: Verify = True
    cert: Certificate | None = None

    def arguments(self) -> dict[str, Any]:
        """What httpx's clients take."""
        # A proxy of the environment is for other hosts, whatever its no_proxy says.
        local = httpx.URL(self.url).host in ("localhost", "127.0.0.1", "::1")
        headers = {} if self.api_key is None else {"Authorization": f"Bearer {self.api_key}"}
        return {
            "base_url": self.url,
            "timeout": self.timeout_s,
            "trust_env": not local,
            "headers": headers,
            "verify": self._verify(),
        }

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
