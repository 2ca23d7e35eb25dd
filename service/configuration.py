"""Where settings come from: flags, then `SIGHTFIX_…` variables, then a TOML file, then defaults."""

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import ValidationError

from retrieval.errors import ParameterError
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
    _refuse_unknown(in_file, f"{file}", str)
    _refuse_unknown(variables, "the environment", lambda name: PREFIX + name.upper())
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
        # Every name is given, so that pydantic does not look at the environment of this process again.
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


def _refuse_unknown(values: Mapping[str, Any], where: str, spelt: Any) -> None:
    known = ServerSettings.model_fields
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise ParameterError(
            f"unknown setting {spelt(unknown[0])}",
            where=where,
            remedy=f"The settings are {', '.join(spelt(name) for name in known)}",
        )


def _where(name: str, origin: Origin, file: Path | None) -> str:
    return {
        "flag": f"--{name.replace('_', '-')}",
        "environment": PREFIX + name.upper(),
        "file": f"{file}: {name}",
        "default": name,
    }[origin]
