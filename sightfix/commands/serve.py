"""`sightfix serve`: the HTTP server."""

from pathlib import Path
from typing import Annotated

import typer

from sightfix.describer_options import CpuFallbackOption, PrecisionOption, ProviderOption, ThreadsOption


def serve(
    index: Annotated[str | None, typer.Option(help="Place index to serve; the only one there is if left out")] = None,
    indexes: Annotated[Path | None, typer.Option(help="Folder of all place indexes [default: indexes]")] = None,
    bundle: Annotated[
        Path | None, typer.Option(help="Bundle the index was made with [default: the shipped one]")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on [default: 127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 takes a free one [default: 8080]")] = None,
    provider: ProviderOption = None,
    precision: PrecisionOption = None,
    threads: ThreadsOption = None,
    allow_cpu_fallback: CpuFallbackOption = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error [default: info]")] = None,
) -> None:
    """Serve POST /localize. Every option is also an environment variable: SIGHTFIX_PORT, SIGHTFIX_INDEX, …"""
    from pydantic import ValidationError

    from retrieval.errors import ParameterError
    from service.logs import log_to_stderr
    from service.server import serve as run
    from service.settings import ServerSettings

    given = {
        "index": index,
        "indexes": indexes,
        "bundle": bundle,
        "host": host,
        "port": port,
        "provider": provider,
        "precision": precision,
        "threads": threads,
        "allow_cpu_fallback": allow_cpu_fallback,
        "log_level": log_level,
    }
    try:
        settings = ServerSettings.model_validate(
            {**ServerSettings().model_dump(), **{key: value for key, value in given.items() if value is not None}}
        )
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else "settings"
        raise ParameterError(
            f"{first['msg']}, not {first['input']!r}",
            where=f"--{name.replace('_', '-')} or SIGHTFIX_{name.upper()}",
            remedy="See: sightfix serve --help",
        ) from error
    log_to_stderr(settings.log_level)
    run(settings)
