"""Reads and checks the settings of a server: from flags, `SIGHTFIX_…` variables, a TOML file, and defaults."""

import os
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import ValidationError

from retrieval.bundle import open_bundle
from retrieval.errors import ParameterError, SightfixError, counted
from retrieval.index.searchable import SearchablePlaceIndex
from retrieval.verification.verifier import Reranker, require_features
from service.api_keys import read_keys
from service.settings import ServerSettings

PREFIX: Final = "SIGHTFIX_"
Origin = Literal["flag", "environment", "file", "default"]


@dataclass(frozen=True)
class Configuration:
    """Settings, and where each of them comes from."""

    settings: ServerSettings
    origins: Mapping[str, Origin]


def read_configuration(
    file: Path | None = None, flags: Mapping[str, Any] | None = None, environment: Mapping[str, str] | None = None
) -> Configuration:
    """Put the settings together.

    Args:
        file: TOML with the names of `ServerSettings`; None for none.
        flags: of the command line; None values are those not given.
        environment: variables; those of this process by default.

    Raises:
        ParameterError: the file cannot be read; an unknown name in it or in the environment (lists those there are);
            a value outside its domain (says which flag, variable or line of the file).
    """
    environment = os.environ if environment is None else environment
    known = ServerSettings.model_fields
    in_file = {} if file is None else _read_toml(file)
    variables = {name[len(PREFIX) :].lower(): value for name, value in environment.items() if name.startswith(PREFIX)}
    given = {name: value for name, value in (flags or {}).items() if value is not None}
    _reject_unknown(in_file, f"{file}", str)
    _reject_unknown(variables, "the environment", lambda name: PREFIX + name.upper())
    origins: dict[str, Origin] = {
        name: "flag"
        if name in given
        else "environment"
        if name in variables
        else "file"
        if name in in_file
        else "default"
        for name in known
    }
    try:
        # Every name is given, so that pydantic does not read the environment of this process again.
        defaults = {name: field.get_default(call_default_factory=True) for name, field in known.items()}
        settings = ServerSettings.model_validate({**defaults, **in_file, **variables, **given})
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else "settings"
        raise ParameterError(
            f"{first['msg']}, not {first['input']!r}",
            where=_where(name, origins.get(name, "default"), file),
            remedy="See: sightfix serve --help",
        ) from error
    return Configuration(settings, origins)


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ParameterError(f"the configuration cannot be read ({error.strerror})", where=str(file)) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ParameterError(f"the configuration is not TOML ({error})", where=str(file)) from error


def _reject_unknown(values: Mapping[str, Any], where: str, spell: Any) -> None:
    known = ServerSettings.model_fields
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise ParameterError(
            f"unknown setting {spell(unknown[0])}",
            where=where,
            remedy=f"The settings are {', '.join(spell(name) for name in known)}",
        )


def _where(name: str, origin: Origin, file: Path | None) -> str:
    return {
        "flag": f"--{name.replace('_', '-')}",
        "environment": PREFIX + name.upper(),
        "file": f"{file}: {name}",
        "default": name,
    }[origin]


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check.

    Attributes:
        what: was checked.
        ok: whether it works.
        detail: what was found, or what is wrong and the remedy.
    """

    what: str
    ok: bool
    detail: str


def check_settings(settings: ServerSettings) -> list[Finding]:
    """Check whether a server would start: all that it does before it listens, but for the model."""
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
    opened: list[SearchablePlaceIndex] = []
    find("place index", lambda: _index(settings, opened))
    find("bundle", lambda: _bundle(settings, opened[0] if opened else None))
    return findings


def _exposure(settings: ServerSettings) -> str:
    settings.check_exposure()
    grpc = "" if settings.grpc_port is None else f", gRPC at port {settings.grpc_port}"
    open_to_all = ", open to every client that can reach it" if settings.insecure else ""
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


def _bundle(settings: ServerSettings, index: SearchablePlaceIndex | None) -> str:
    bundle = open_bundle(settings.bundle) if index is None else index.open_bundle(settings.bundle)
    bundle.graph_path(settings.precision)
    return f"{bundle.name}, {settings.precision}, {bundle.fingerprint[:12]}"


def _index(settings: ServerSettings, opened: list[SearchablePlaceIndex]) -> str:
    store = settings.open_store()
    try:
        index = store.open(store.find(settings.index))
        opened.append(index)
        if settings.reranking is not None:
            Reranker(require_features(index.local_features, index.where), settings.reranking)
        reranked = f", the best {settings.rerank} matches re-ranked" if settings.rerank else ""
        references = counted(index.count, "reference")
        return f"{index.name}, version {index.version}, {references}, {index.type_name}{reranked}"
    finally:
        store.close()
