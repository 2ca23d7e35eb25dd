"""`sightfix localize`: one photo, against a running server or straight on an index."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from retrieval.errors import ParameterError
from retrieval.index.folder import DEFAULT_INDEXES
from sightfix.commands.options import (
    CpuFallbackOption,
    IndexesOption,
    PrecisionOption,
    ProviderOption,
    QueryBundleOption,
    StoreOption,
    ThreadsOption,
    make_describer,
)
from sightfix.console import print_answer

if TYPE_CHECKING:
    from retrieval.geo import GeoPrior


def localize(
    photo: Annotated[Path, typer.Argument(help="JPEG, PNG, WebP or HEIC")],
    server: Annotated[
        str | None, typer.Option(help="Ask a running server, such as http://127.0.0.1:8080, instead of an index")
    ] = None,
    api_key: Annotated[
        str | None, typer.Option(envvar="SIGHTFIX_API_KEY", help="For a server that wants one", show_envvar=True)
    ] = None,
    index: Annotated[str | None, typer.Option(help="Place index; the only one there is if left out")] = None,
    indexes: IndexesOption = DEFAULT_INDEXES,
    store: StoreOption = None,
    bundle: QueryBundleOption = None,
    top_k: Annotated[int, typer.Option(help="How many matches, 1 to 100")] = 5,
    near: Annotated[str | None, typer.Option(help="Geo prior: LAT,LON,RADIUS_M; the answer must lie inside")] = None,
    min_score: Annotated[float | None, typer.Option(help="Leave out matches below this cosine")] = None,
    rerank: Annotated[int, typer.Option(min=0, help="Compare so many best matches with the photo point by point")] = 0,
    provider: ProviderOption = None,
    precision: PrecisionOption = None,
    threads: ThreadsOption = None,
    allow_cpu_fallback: CpuFallbackOption = None,
    json: Annotated[bool, typer.Option("--json", help="Print the whole answer as JSON")] = False,
) -> None:
    """Where was this photo taken?"""
    if server is not None and index is not None:
        raise ParameterError("both --server and --index are given", remedy="Ask a server or an index, not both")
    if server is not None and rerank:
        raise ParameterError("both --server and --rerank are given", remedy="Start the server with --rerank instead")
    prior = _geo_prior(near)
    if server is not None:
        from sightfix.client import SightfixClient

        with SightfixClient(server, api_key=api_key) as client:
            answer = client.localize(photo, top_k=top_k, geo_prior=prior, min_score=min_score)
    else:
        from retrieval.index.stores import open_store
        from retrieval.localize.localizer import LocalizeOptions, Localizer
        from retrieval.verification.verifier import RerankSettings
        from service.answer import answer_of

        options = LocalizeOptions(top_k, prior, min_score)
        opened = open_store(store, indexes)
        place_index = opened.open(opened.find(index))
        # One photo is not worth the seconds in which a GPU starts: the CPU, unless a provider is named.
        model = place_index.open_bundle(bundle)
        describer = make_describer(model, provider, precision, threads, allow_cpu_fallback, default_provider="cpu")
        reranking = RerankSettings(top=rerank) if rerank else None
        answer = answer_of(Localizer(describer, place_index, rerank=reranking).localize_file(photo, options))
    if json:
        sys.stdout.write(answer.model_dump_json(indent=2) + "\n")
    else:
        print_answer(answer, top_k)


def _geo_prior(text: str | None) -> "GeoPrior | None":
    from retrieval.geo import GeoPrior

    if text is None:
        return None
    try:
        lat, lon, radius_m = (float(part) for part in text.split(","))
    except ValueError:
        raise ParameterError(
            f"--near {text!r} is not three numbers", remedy="Give LAT,LON,RADIUS_M, such as 55.6983,13.1951,500"
        ) from None
    return GeoPrior(lat, lon, radius_m)
