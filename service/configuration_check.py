"""Would a server start with these settings? Everything is tried but the listening and the model."""

from collections.abc import Callable
from dataclasses import dataclass

from retrieval.bundle import Bundle, open_bundle
from retrieval.errors import SightfixError
from retrieval.reranking.reranker import Reranker, require_features
from service.api_keys import read_keys
from service.settings import ServerSettings


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was tried.

    Attributes:
        what: was tried.
        ok: whether it works.
        said: what was found, or what is wrong and the remedy.
    """

    what: str
    ok: bool
    said: str


def check_settings(settings: ServerSettings) -> list[Finding]:
    """Try what a server does before it listens."""
    findings: list[Finding] = []

    def find(what: str, attempt: Callable[[], str]) -> None:
        try:
            findings.append(Finding(what, True, attempt()))
        except SightfixError as error:
            findings.append(Finding(what, False, str(error)))

    find("address", lambda: _exposure(settings))
    find("TLS", lambda: _tls(settings))
    find("API keys", lambda: _keys(settings))
    find("map tiles", lambda: _map_tiles(settings))
    bundle: list[Bundle] = []
    find("bundle", lambda: _bundle(settings, bundle))
    find("place index", lambda: _index(settings, bundle[0] if bundle else None))
    return findings


def _exposure(settings: ServerSettings) -> str:
    settings.check_exposure()
    grpc = "" if settings.grpc_port is None else f", gRPC at port {settings.grpc_port}"
    open_to_all = ", open to anybody who can reach it" if settings.insecure else ""
    return f"{settings.host}:{settings.port}{grpc}{open_to_all}"


def _tls(settings: ServerSettings) -> str:
    tls = settings.tls
    if tls is None:
        return "none: plain HTTP"
    tls.check()
    return "certificate and key load" + (", clients need certificates" if tls.client_ca else "")


def _keys(settings: ServerSettings) -> str:
    if settings.api_keys is None:
        return "none"
    keys = read_keys(settings.api_keys)
    admins = sum(key.allows("admin") for key in keys)
    return f"{len(keys)}, {admins} of them for administration"


def _map_tiles(settings: ServerSettings) -> str:
    tiles = settings.map_tiles
    return "none: a plain grid" if tiles is None else f"{tiles.csp_source or 'from this host'}, {tiles.attribution}"


def _bundle(settings: ServerSettings, opened: list[Bundle]) -> str:
    bundle = open_bundle(settings.bundle)
    bundle.graph_path(settings.precision)
    opened.append(bundle)
    return f"{bundle.name}, {settings.precision}, {bundle.fingerprint[:12]}"


def _index(settings: ServerSettings, bundle: Bundle | None) -> str:
    store = settings.open_store()
    try:
        index = store.open(store.find(settings.index))
        if bundle is not None:
            index.check_bundle(bundle)
        if settings.reranking is not None:
            Reranker(require_features(index.local_features, index.where), settings.reranking)
        reranked = f", the best {settings.rerank} matches re-ranked" if settings.rerank else ""
        return f"{index.name}, version {index.version}, {index.count} references, {index.type_name}{reranked}"
    finally:
        store.close()
