"""TLS and mTLS with certificates made here; and limits on what comes before a body."""

import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from retrieval.errors import ParameterError
from service.settings import ServerSettings, TlsFiles
from tests.conftest import PublishedPlaces
from tests.running_server import RunningServer, forked_server


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ca.pem, and of it server and client, each .pem and .key; stranger of nobody; locked.key with a password."""
    folder = tmp_path_factory.mktemp("pem")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    for name, issuer in (("server", authority), ("client", authority), ("stranger", trustme.CA())):
        issued = issuer.issue_cert("127.0.0.1")
        issued.private_key_pem.write_to_path(folder / f"{name}.key")
        for part in issued.cert_chain_pems:
            part.write_to_path(folder / f"{name}.pem", append=True)
    key = load_pem_private_key((folder / "server.key").read_bytes(), None)
    (folder / "locked.key").write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
    )
    return folder


def context(pem: Path, client: str | None = None) -> ssl.SSLContext:
    trusted = ssl.create_default_context(cafile=str(pem / "ca.pem"))
    if client:
        trusted.load_cert_chain(pem / f"{client}.pem", pem / f"{client}.key")
    return trusted


def listening(running: RunningServer) -> str:
    return running.url.replace("http://", "https://")


def test_https_and_client_certificates(pem: Path, published: PublishedPlaces, tmp_path: Path) -> None:
    arguments = ["--indexes", str(published.indexes), "--tls-cert", str(pem / "server.pem"), "--tls-key",
                 str(pem / "server.key"), "--tls-client-ca", str(pem / "ca.pem")]  # fmt: skip
    with forked_server(tmp_path / "log", arguments) as running:
        url = listening(running)
        with httpx.Client(verify=context(pem, "client")) as client:
            assert client.get(f"{url}/livez").status_code == 200
        for name in (None, "stranger"):
            with httpx.Client(verify=context(pem, name)) as client, pytest.raises(httpx.TransportError):
                client.get(f"{url}/livez")


def test_files_that_do_not_load_are_named(pem: Path, tmp_path: Path) -> None:
    TlsFiles(pem / "server.pem", pem / "server.key", pem / "ca.pem").check()
    with pytest.raises(ParameterError, match=r"none\.pem: the TLS file cannot be read"):
        TlsFiles(tmp_path / "none.pem", pem / "server.key").check()
    with pytest.raises(ParameterError, match=r"certificate and key cannot be loaded .*belong together"):
        TlsFiles(pem / "server.pem", pem / "client.key").check()
    with pytest.raises(ParameterError, match="must not have a password"):
        TlsFiles(pem / "server.pem", pem / "locked.key").check()
    with pytest.raises(ParameterError, match="certificate authority for clients cannot be loaded"):
        TlsFiles(pem / "server.pem", pem / "server.key", pem / "server.key").check()


@pytest.mark.parametrize("given", [{"tls_cert": "a"}, {"tls_key": "a"}, {"tls_client_ca": "a"}])
def test_half_a_pair_is_no_tls(given: dict[str, str]) -> None:
    with pytest.raises(ParameterError, match="TLS needs a certificate and its key"):
        _ = ServerSettings.model_validate(given).tls


@pytest.fixture(scope="module")
def strict(published: PublishedPlaces, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    environment = {"SIGHTFIX_HEADER_TIMEOUT_S": "0.5", "SIGHTFIX_MAX_HEADER_BYTES": "2048"}
    with forked_server(
        tmp_path_factory.mktemp("strict") / "log", ["--indexes", str(published.indexes)], environment
    ) as running:
        running.wait_until_ready()
        yield running


def send(running: RunningServer, *pieces: bytes, pause: float = 0.0) -> bytes:
    host, _, port = running.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        for piece in pieces:
            connection.sendall(piece)
            time.sleep(pause)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
        return answer


def test_headers_that_never_end_are_cut_off(strict: RunningServer) -> None:
    begun = time.monotonic()
    assert send(strict, b"GET /livez HTTP/1.1\r\nHost: x\r\nX-Slow: ").startswith(b"HTTP/1.1 408 ")
    assert send(strict).startswith(b"HTTP/1.1 408 ")
    assert time.monotonic() - begun < 10


def test_headers_that_are_too_large_are_cut_off(strict: RunningServer) -> None:
    answer = send(strict, b"GET /livez HTTP/1.1\r\nHost: x\r\nX-Large: " + b"x" * 4096)
    assert answer.startswith(b"HTTP/1.1 431 ")


def test_a_connection_is_used_again_and_a_large_body_is_no_header(strict: RunningServer) -> None:
    with httpx.Client() as client:
        for _ in range(3):
            assert client.get(f"{strict.url}/livez").status_code == 200
            assert client.post(f"{strict.url}/localize", content=b"x" * 10_000).status_code == 415
        time.sleep(0.8)
        assert client.get(f"{strict.url}/livez").status_code == 200
