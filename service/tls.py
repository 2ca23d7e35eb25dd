"""TLS, and client certificates (mTLS) where a certificate authority for clients is given."""

import ssl
from dataclasses import dataclass
from pathlib import Path

from retrieval.errors import ParameterError


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files.

    Attributes:
        certificate: of the server, with its chain.
        key: private, of the certificate.
        client_ca: whose client certificates are let in; None asks for none.
    """

    certificate: Path
    key: Path
    client_ca: Path | None = None

    def check(self) -> None:
        """Load the files as the server will.

        Raises:
            ParameterError: one cannot be read or is no PEM, or certificate and key do not belong together.
        """
        for path in (self.certificate, self.key, self.client_ca):
            if path is None:
                continue
            try:
                path.read_bytes()
            except OSError as error:
                raise ParameterError(
                    f"the TLS file cannot be read ({error.strerror})", where=str(path), remedy="Check path and owner"
                ) from error
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(self.certificate, self.key, password=_no_password)
        except (ssl.SSLError, ValueError) as error:
            raise ParameterError(
                f"certificate and key cannot be loaded ({_reason(error)})",
                where=f"{self.certificate}, {self.key}",
                remedy="Give PEM files that belong together; the key must not have a password",
            ) from error
        if self.client_ca is None:
            return
        try:
            context.load_verify_locations(self.client_ca)
        except ssl.SSLError as error:
            raise ParameterError(
                f"the certificate authority for clients cannot be loaded ({_reason(error)})",
                where=str(self.client_ca),
                remedy="Give a PEM file with its certificate",
            ) from error


def _no_password() -> str:
    """Instead of the prompt that OpenSSL would put on the terminal."""
    raise ValueError("the key has a password")


def _reason(error: Exception) -> str:
    return getattr(error, "reason", None) or str(error)
