"""The `sightfix` command: each stage of the pipeline is a thin command over an importable function."""

import sys
from collections.abc import Callable
from importlib import import_module
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from retrieval import __version__
from retrieval.errors import SightfixError

app = typer.Typer(
    name="sightfix",
    help="Where was this photo taken? Index geo-tagged photos, serve POST /localize, get a fix.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

# Command → the module that holds the function of that name; modules import their heavy dependencies inside it,
# so that `sightfix --help` stays instant.
COMMANDS = {
    "inspect": "inspect",
    "plan": "index",
    "serve": "serve",
    "key": "serve",
    "localize": "localize",
    "train": "train",
    "export": "export",
    "evaluate": "evaluate",
    "explain": "explain",
    "compare": "compare",
    "demo": "demo",
}

for _name, _module in COMMANDS.items():
    _function: Callable[..., None] = getattr(import_module(f"sightfix.commands.{_module}"), _name)
    app.command(name=_name)(_function)

# Each module holds a typer application with subcommands.
GROUPS = {"index": "index_group", "bundle": "bundle"}

for _name, _module in GROUPS.items():
    app.add_typer(getattr(import_module(f"sightfix.commands.{_module}"), _name), name=_name)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"sightfix {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Where was this photo taken? Index geo-tagged photos, serve POST /localize, get a fix."""


def main() -> None:
    """Run the command line; a user's error is printed without a traceback and exits 1."""
    try:
        app()
    except SightfixError as error:
        Console(stderr=True).print(f"[bold red]error[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
