"""`sightfix key`: make an API key for a server."""

from pathlib import Path
from typing import Annotated

import typer


def key(
    name: Annotated[str, typer.Argument(help="Whose key it is, such as robot-7")],
    file: Annotated[Path, typer.Option(help="File of the server's keys; made if it does not exist")],
    scope: Annotated[
        list[str] | None, typer.Option(help="localize, or admin (jobs, versions, and localize); localize if left out")
    ] = None,
) -> None:
    """Make an API key; only its hash is kept, so it is shown this once."""
    from retrieval.errors import ParameterError
    from service.api_keys import SCOPES, make_key

    scopes = tuple(dict.fromkeys(scope or ["localize"]))
    unknown = [one for one in scopes if one not in SCOPES]
    if unknown:
        raise ParameterError(f"the scope {unknown[0]!r} is unknown", remedy=f"Choose among {', '.join(SCOPES)}")
    made = make_key(file, name, scopes)  # type: ignore[arg-type]
    # The key alone on stdout, so that it can be piped to where it belongs.
    typer.echo(made)
    typer.echo(f"{name} may {' and '.join(scopes)}; its hash is in {file}. It is not shown again.", err=True)
