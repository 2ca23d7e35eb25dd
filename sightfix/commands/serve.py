"""`sightfix serve` and `sightfix key`: the server, and API keys for it."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from sightfix.commands.options import (
    CpuFallbackOption,
    PrecisionOption,
    ProviderOption,
    ThreadsOption,
    check_choice,
)
from sightfix.console import console, plain_table

if TYPE_CHECKING:
    from service.configuration import Configuration


def serve(
    context: typer.Context,
    index: Annotated[str | None, typer.Option(help="Place index to serve; the only one there is if left out")] = None,
    indexes: Annotated[Path | None, typer.Option(help="Folder of all place indexes [default: indexes]")] = None,
    store: Annotated[
        str | None, typer.Option(help="Engine that holds them instead, such as milvus://host:19530 [default: none]")
    ] = None,
    bundle: Annotated[
        Path | None,
        typer.Option(help="Bundle the index was made with, or a place index that holds it [default: what it holds]"),
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on [default: 127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 takes a free one [default: 8080]")] = None,
    grpc_port: Annotated[
        int | None, typer.Option(help="Port for gRPC, too; 0 takes a free one, 50051 is usual [default: none]")
    ] = None,
    provider: ProviderOption = None,
    precision: PrecisionOption = None,
    threads: ThreadsOption = None,
    allow_cpu_fallback: CpuFallbackOption = None,
    source_root: Annotated[
        list[Path] | None, typer.Option(help="Folder that re-indexing jobs may read photos from; repeatable")
    ] = None,
    api_keys: Annotated[Path | None, typer.Option(help="File of API keys, made by: sightfix key")] = None,
    insecure: Annotated[
        bool | None, typer.Option("--insecure", help="Listen beyond this machine without API keys")
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate (PEM), for https")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its private key (PEM)")] = None,
    tls_client_ca: Annotated[
        Path | None, typer.Option(help="Accept only clients with a certificate of this authority (PEM)")
    ] = None,
    otlp_endpoint: Annotated[
        str | None, typer.Option(help="Send OpenTelemetry traces there, such as http://localhost:4318 [default: none]")
    ] = None,
    log_format: Annotated[str | None, typer.Option(help="text, or json for machines [default: text]")] = None,
    access_log: Annotated[
        bool | None, typer.Option("--access-log", help="Log every request, not only failures")
    ] = None,
    memory_map: Annotated[
        bool | None, typer.Option("--memory-map", help="Leave the index's vectors on the disk, paged in when searched")
    ] = None,
    search_device: Annotated[
        str | None, typer.Option(help="Where the index is searched: cpu, or gpu through faiss-gpu [default: cpu]")
    ] = None,
    rerank: Annotated[
        int | None, typer.Option(help="Compare so many best matches with the photo point by point [default: 0, none]")
    ] = None,
    tile_url: Annotated[
        str | None, typer.Option(help="Map tiles of the web page, with {z}, {x} and {y} [default: a plain grid]")
    ] = None,
    tile_attribution: Annotated[str | None, typer.Option(help="Who made the map tiles, shown on the map")] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error [default: info]")] = None,
    config: Annotated[Path | None, typer.Option(envvar="SIGHTFIX_CONFIG", help="Settings from a TOML file")] = None,
    check_config: Annotated[
        bool, typer.Option("--check-config", help="Show the settings, try what they name, and do not serve")
    ] = False,
) -> None:
    """Serve POST /localize. Settings come from flags, SIGHTFIX_… variables, and --config FILE, in this order."""
    from service.configuration import read_configuration
    from service.observing.logs import log_to_stderr
    from service.server import serve as run

    ours = {"config", "check_config"}
    flags: dict[str, Any] = {
        name: value for name, value in context.params.items() if name not in ours and _is_flag(context, name)
    }
    if "source_root" in flags:
        flags["source_roots"] = flags.pop("source_root")
    environment = {name: value for name, value in os.environ.items() if name != "SIGHTFIX_CONFIG"}
    configuration = read_configuration(config, flags, environment)
    if check_config:
        _check(configuration)
        return
    log_to_stderr(configuration.settings.log_level, configuration.settings.log_format)
    run(configuration.settings)


def _is_flag(context: typer.Context, name: str) -> bool:
    """Whether a value stood on the command line, rather than in the environment or nowhere."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _check(configuration: "Configuration") -> None:
    from service.configuration import check_settings

    settings = configuration.settings
    table = plain_table("setting", "value", "from")
    for name, origin in configuration.origins.items():
        style = "dim" if origin == "default" else None
        value = getattr(settings, name)
        table.add_row(name, escape("" if value is None else str(value)), origin, style=style)
    console.print(table)
    findings = check_settings(settings)
    for finding in findings:
        mark = "[green]ok[/]   " if finding.ok else "[red]wrong[/]"
        console.print(f"{mark} {finding.what}: {escape(finding.detail)}")
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


def key(
    name: Annotated[str, typer.Argument(help="Whose key it is, such as robot-7")],
    file: Annotated[Path, typer.Option(help="File of the server's keys; made if it does not exist")],
    scope: Annotated[
        list[str] | None, typer.Option(help="localize, or admin (jobs, versions, and localize); localize if left out")
    ] = None,
) -> None:
    """Make an API key; only its hash is kept, so it is shown this once."""
    from service.api_keys import SCOPES, make_key

    scopes = tuple(check_choice("--scope", one, SCOPES) for one in dict.fromkeys(scope or ["localize"]))
    made = make_key(file, name, scopes)
    # Only the key goes to stdout, so that it can be piped.
    typer.echo(made)
    typer.echo(
        f"{name} has the scope {' and '.join(scopes)}; its hash is in {file}. The key is not shown again.", err=True
    )
