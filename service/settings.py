"""The settings of a server: environment variables `SIGHTFIX_…`, overridden by the command line."""

import os
import re
import ssl
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Final, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from retrieval.bundle import Precision
from retrieval.engines.choosing import ProviderChoice
from retrieval.errors import ParameterError
from retrieval.index.folder import DEFAULT_INDEXES
from retrieval.index.milvus.connection import MilvusAddress
from retrieval.index.searchable import PlaceIndexStore
from retrieval.index.stores import open_store
from retrieval.localize.evidence import FixMethod
from retrieval.verification.verifier import MAX_RERANKED, RerankSettings
from service.jobs.settings import JobSettings
from service.observing.logs import LogFormat

DEEPEST_ZOOM: Final = 23
_NAMES: Final = frozenset({"s", "z", "x", "y", "-y", "r"})

# Nothing that could end a directive of the Content-Security-Policy or begin another.
_HOST: Final = re.compile(r"(\{s\}\.)?[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?(:\d{1,5})?")

_REMEDY: Final = "Write it as https://tile.example.org/{z}/{x}/{y}.png, or /tiles/{z}/{x}/{y}.png on this host"


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files.

    Attributes:
        certificate: of the server, with its chain.
        key: private, of the certificate.
        client_ca: authority of the client certificates that are required (mTLS); None requires none.
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


def host_in_url(host: str) -> str:
    """A host as URLs have it: IPv6 in brackets."""
    return f"[{host}]" if ":" in host else host


def _no_password() -> str:
    """Instead of the prompt that OpenSSL would put on the terminal."""
    raise ValueError("the key has a password")


def _reason(error: Exception) -> str:
    return getattr(error, "reason", None) or str(error)


@dataclass(frozen=True, slots=True)
class MapTiles:
    """A source of tiles in Web Mercator for the map on the web page.

    Attributes:
        url: of one tile, with ``{z}``, ``{x}`` and ``{y}`` (or ``{-y}``, counted from the south); ``{s}`` is one of
            a, b and c, ``{r}`` is ``@2x`` on fine screens. A path alone is one on the page's own host.
        attribution: author of the map, as its licence requires; plain text.
        max_zoom: the deepest level that the source has; deeper views enlarge it.

    Raises:
        ParameterError: another URL than that.
    """

    url: str
    attribution: str
    max_zoom: int

    def __post_init__(self) -> None:
        names = re.findall(r"\{([^{}]*)\}", self.url)
        if not {"z", "x"} <= set(names) or not {"y", "-y"} & set(names):
            raise self._wrong("the URL of map tiles lacks {z}, {x} or {y}")
        unknown = sorted(set(names) - _NAMES)
        if unknown:
            raise self._wrong(f"the URL of map tiles has an unknown part {{{unknown[0]}}}")
        scheme, host = self._scheme_and_host()
        if scheme not in ("http", "https", "") or not (_HOST.fullmatch(host) if scheme else self._is_path(host)):
            raise self._wrong("the URL of map tiles is neither http, https nor a path")

    @property
    def csp_source(self) -> str | None:
        """What the page may load pictures from for it (CSP level 3); None where that is its own host."""
        scheme, host = self._scheme_and_host()
        return f"{scheme}://{host.replace('{s}', '*')}" if scheme else None

    def _scheme_and_host(self) -> tuple[str, str]:
        try:
            parts = urlsplit(self.url)
        except ValueError as error:
            raise self._wrong(f"the URL of map tiles cannot be read ({error})") from error
        return parts.scheme, parts.netloc

    def _is_path(self, host: str) -> bool:
        return not host and re.match(r"/[^/\\]", self.url) is not None

    def _wrong(self, what: str) -> ParameterError:
        return ParameterError(what, where=f"--tile-url or SIGHTFIX_TILE_URL: {self.url}", remedy=_REMEDY)


class ServerSettings(BaseSettings):
    """Settings of one server process.

    Attributes:
        host, port: where to listen; port 0 takes a free one. The default is reachable from this machine only.
        grpc_port: where to listen for gRPC, on the same host; None: not at all.
        indexes: the folder of all place indexes.
        store: address of another engine that holds them, such as milvus://host:19530; None: that folder.
        index: which one to serve; may be left out when there is only one.
        bundle: takes the place of the one that the index holds, and must be the same; the folder of a place index
            stands for what its current version holds; None takes the index's own.
        provider: where the model computes; auto takes the best there is, see `choose_engine`.
        precision: which of the bundle's graphs.
        allow_cpu_fallback: whether the CPU may take the place of a named provider that cannot be had.
        gpu_mem_limit: of ONNX Runtime's memory arena on a GPU, bytes; None sets no limit.
        engine_cache: where engines compiled for a GPU are kept; None is the user's cache folder.
        threads: of the model on the CPU; None takes every core.
        decode_threads: photos decoded at the same time; None takes every core.
        max_image_bytes: largest encoded image accepted.
        max_pixels: largest image accepted, by its header.
        max_waiting: photos that may be admitted at once, decoding and waiting included; more are rejected with 429.
        max_batch: photos that the model takes at once; None for 8 on a CPU and 32 on a GPU.
        max_delay_ms: how long an idle model waits for further photos after the first; 0: not at all.
        deadline_ms: when an answer is too late, if a request does not say.
        body_timeout_s: how long a client may take to send its request.
        watch_interval_s: how often to look for a newly published version.
        drain_delay_s: how long to go on answering after SIGTERM with /readyz at 503, so that balancers can see it.
        api_keys: file of API keys' hashes; None accepts every client that can reach the server.
        insecure: whether to listen beyond this machine without API keys.
        tls_cert, tls_key: PEM files; both, or none for plain HTTP.
        tls_client_ca: PEM file of the authority of the client certificates that are required (mTLS).
        max_header_bytes: largest request line and headers together.
        header_timeout_s: how long a client may take to send them.
        stop_timeout_s: how long to finish what was accepted, before it is cut off.
        canary_interval_s: between two health probes, in which model and index must find a known reference; after twice
            that without a success, the server is not ready. Longer than the longest batch takes.
        hung_after_s: /livez fails when the model has not responded for so long.
        metrics: on a `port` of their own, on the `main` port at /metrics, or `off`.
        metrics_host, metrics_port: where; None takes 9464, or a free port when that is taken.
        otlp_endpoint: of an OpenTelemetry collector; None leaves it to the OTEL_… variables.
        log_format: text for people, json for machines.
        access_log: whether every request is logged at info, not only those that failed.
        source_roots: folders that re-indexing jobs may read photos from; none: no jobs.
        jobs_folder: where jobs are kept; None is `.jobs` among the indexes.
        memory_map: leave the vectors of the index on the disk, paged in as they are searched; its files are then
            checked by their sizes, not by their hashes.
        search_device: where the index is searched; gpu needs faiss-gpu and type exact, ivf or ivf-int8.
        max_tracks: tracks that may be open at once, of gRPC streams and over HTTP; 0: none.
        track_idle_s: a track opened over HTTP is closed when no frame has come for so long.
        track_place_m: references in a square of this side are one place to a track, metres.
        fix_method: how the fix is made from the matches.
        rerank: so many of the best matches are compared with the photo point by point, and ordered by that; 0: none.
            Needs an index with local features.
        tile_url, tile_attribution, tile_max_zoom: of the map on the web page, see `MapTiles`; None: a plain grid.
    """

    model_config = SettingsConfigDict(env_prefix="SIGHTFIX_", extra="forbid", frozen=True)

    host: str = "127.0.0.1"
    port: int = Field(default=8080, ge=0, le=65535)
    grpc_port: int | None = Field(default=None, ge=0, le=65535)
    indexes: Path = DEFAULT_INDEXES
    store: str | None = None
    index: str | None = None
    bundle: Path | None = None
    provider: ProviderChoice = "auto"
    precision: Precision = "fp32"
    allow_cpu_fallback: bool = False
    gpu_mem_limit: int | None = Field(default=None, ge=64 * 1024 * 1024)
    engine_cache: Path | None = None
    threads: int | None = Field(default=None, ge=1)
    decode_threads: int | None = Field(default=None, ge=1)
    max_image_bytes: int = Field(default=32 * 1024 * 1024, ge=1024)
    max_pixels: int = Field(default=80_000_000, ge=1, le=89_000_000)  # beyond, Pillow has a limit of its own
    max_waiting: int = Field(default=64, ge=1)
    max_batch: int | None = Field(default=None, ge=1, le=1024)
    max_delay_ms: float = Field(default=0.0, ge=0.0, le=1000.0)
    deadline_ms: float = Field(default=30_000.0, gt=0.0, le=600_000.0)
    body_timeout_s: float = Field(default=30.0, gt=0.0)
    watch_interval_s: float = Field(default=1.0, gt=0.0)
    drain_delay_s: float = Field(default=0.0, ge=0.0, le=600.0)
    stop_timeout_s: int = Field(default=30, ge=1, le=600)
    api_keys: Path | None = None
    insecure: bool = False
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_client_ca: Path | None = None
    max_header_bytes: int = Field(default=64 * 1024, ge=1024)
    header_timeout_s: float = Field(default=10.0, gt=0.0)
    canary_interval_s: float = Field(default=60.0, gt=0.0)
    hung_after_s: float = Field(default=600.0, gt=0.0)
    metrics: Literal["port", "main", "off"] = "port"
    metrics_host: str = "127.0.0.1"
    metrics_port: int | None = Field(default=None, ge=0, le=65535)
    otlp_endpoint: str | None = None
    log_format: LogFormat = "text"
    access_log: bool = False
    source_roots: Annotated[tuple[Path, ...], NoDecode] = ()
    jobs_folder: Path | None = None
    memory_map: bool = False
    search_device: Literal["cpu", "gpu"] = "cpu"
    max_tracks: int = Field(default=64, ge=0, le=10_000)
    track_idle_s: float = Field(default=300.0, gt=0.0, le=86_400.0)
    track_place_m: float = Field(default=5.0, ge=0.5, le=1000.0)
    fix_method: FixMethod = "weighted_cluster"
    rerank: int = Field(default=0, ge=0, le=MAX_RERANKED)
    tile_url: str | None = None
    tile_attribution: str | None = None
    tile_max_zoom: int = Field(default=19, ge=1, le=DEEPEST_ZOOM)
    log_level: str = Field(default="info", pattern="^(debug|info|warning|error)$")

    @field_validator("source_roots", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        """In the environment folders are separated as in PATH."""
        return [part for part in value.split(os.pathsep) if part] if isinstance(value, str) else value

    def open_store(self) -> PlaceIndexStore:
        """The store of the place indexes.

        Raises:
            ParameterError: jobs are enabled, and their worker cannot open a file of milvus-lite that is open here.
            ParameterError, MissingExtraError, StoreUnavailableError: see `open_store`.
        """
        if self.store is not None and self.source_roots and MilvusAddress.parse(self.store).lite_file is not None:
            raise ParameterError(
                "one process at a time can open a file of milvus-lite, and jobs run in another",
                where=self.store,
                remedy="Give a Milvus server, or no folders for jobs (--source-root)",
            )
        return open_store(self.store, self.indexes, memory_map=self.memory_map)

    @property
    def max_body_bytes(self) -> int:
        """Largest request body: an image as base64, and room for the rest of the request."""
        return self.max_image_bytes * 4 // 3 + 64 * 1024

    @property
    def max_held_bytes(self) -> int:
        """All request bodies together: those of `max_waiting` photos at 4 MiB each, or four of the largest.

        A photo is admitted when its body is complete; many clients may send while the same place is free.
        """
        return max(self.max_waiting * 4 * 1024 * 1024, 4 * self.max_body_bytes)

    @property
    def jobs(self) -> JobSettings:
        """The settings of the job service."""
        return JobSettings(
            jobs_folder=self.jobs_folder or self.indexes / ".jobs",
            indexes=self.indexes,
            store=self.store,
            source_roots=self.source_roots,
            bundle=self.bundle,
            precision=self.precision,
            max_image_bytes=self.max_image_bytes,
            max_pixels=self.max_pixels,
        )

    @property
    def reranking(self) -> RerankSettings | None:
        """How matches are re-ranked, or None for not at all."""
        return RerankSettings(top=self.rerank) if self.rerank else None

    @property
    def tls(self) -> TlsFiles | None:
        """Certificate, key and authority, or None for plain HTTP.

        Raises:
            ParameterError: a certificate without its key, a key without its certificate, or an authority without both.
        """
        if self.tls_cert is not None and self.tls_key is not None:
            return TlsFiles(self.tls_cert, self.tls_key, self.tls_client_ca)
        if self.tls_cert is None and self.tls_key is None and self.tls_client_ca is None:
            return None
        raise ParameterError(
            "TLS needs a certificate and its key", remedy="Give both: --tls-cert cert.pem --tls-key key.pem"
        )

    @property
    def map_tiles(self) -> MapTiles | None:
        """The source of the map on the web page, or None for a plain grid.

        Raises:
            ParameterError: the URL is none of tiles, or there is no attribution.
        """
        if self.tile_url is None:
            return None
        if not self.tile_attribution:
            raise ParameterError(
                "map tiles need an attribution",
                where="--tile-attribution or SIGHTFIX_TILE_ATTRIBUTION",
                remedy="Name its author as its licence requires, such as '© OpenStreetMap contributors'",
            )
        return MapTiles(self.tile_url, self.tile_attribution, self.tile_max_zoom)

    def check_exposure(self) -> None:
        """Refuse to listen beyond this machine without keys or client certificates, unless `insecure` allows it.

        Raises:
            ParameterError: the address is not loopback, and every client that reaches it could use the server.
        """
        if self.api_keys is not None or self.insecure or self.tls_client_ca is not None or _is_loopback(self.host):
            return
        raise ParameterError(
            f"every client that can reach {self.host} could use this server",
            where="--host or SIGHTFIX_HOST",
            remedy="Give API keys (--api-keys FILE, made by: sightfix key NAME --file FILE), or allow it: --insecure",
        )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:  # a name, which can lead anywhere
        return False
