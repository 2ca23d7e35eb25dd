"""`sightfix demo`: from nothing to a running server in one command."""

import signal
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from sightfix.console import console, print_answer


def demo(
    folder: Annotated[Path, typer.Option(help="Where the toy town is drawn")] = Path("demo-town"),
    references: Annotated[int, typer.Option(min=20, help="Reference photos, at least")] = 300,
    queries: Annotated[int, typer.Option(min=4, help="Query photos, at least")] = 60,
    port: Annotated[int | None, typer.Option(help="Port [default: 8080, or a free one]")] = None,
    keep_serving: Annotated[
        bool | None, typer.Option("--keep-serving/--exit", help="Go on serving [default: in a terminal]")
    ] = None,
) -> None:
    """Draw a toy town, index it, serve it, and ask where one photo was taken."""
    from sightfix.client import SightfixClient
    from sightfix.demo import INDEX_NAME, demo_server, prepare_town, true_distance_m

    town = prepare_town(folder, references=references, queries=queries)
    query = town.queries[len(town.queries) // 3]
    assert query.position is not None, "the toy town knows where its photos were taken"
    photo, indexes, queries_csv = (
        escape(str(path)) for path in (query.path, town.indexes, town.folder / "queries.csv")
    )
    with demo_server(town, port) as url:
        console.print(f"[bold]A photo that is not in the index:[/] {photo}")
        console.print(f"[dim]$ sightfix localize {photo} --server {url}[/]")
        with SightfixClient(url) as client:
            answer = client.localize(query.path, top_k=5)
        print_answer(answer)
        console.print(
            f"True position {query.position.lat:.6f}, {query.position.lon:.6f}: "
            f"the fix is [bold]{true_distance_m(answer, query.position):.1f} m[/] away.\n"
        )
        console.print(f"The server runs at [bold]{url}[/] (a web page; interactive documentation: {url}/docs). Try:")
        console.print(f"  curl --data-binary @{photo} -H 'Content-Type: image/jpeg' {url}/localize")
        console.print("How good is it over all query photos, beside chance?")
        console.print(f"  sightfix evaluate --index {INDEX_NAME} --indexes {indexes} --queries csv:{queries_csv}")
        if keep_serving if keep_serving is not None else sys.stdout.isatty():
            console.print("Press Ctrl-C to stop it.")
            try:
                signal.pause()
            except KeyboardInterrupt:
                console.print("Stopped.")
        else:
            console.print("Not a terminal, so it stops now; start it again with: make demo, or")
            console.print(f"  sightfix serve --indexes {indexes}")
