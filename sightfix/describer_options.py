"""The options that say how photos are described, the same for every command: --provider, --precision, --threads, …

Each is an environment variable too, so that a container's provider holds for all commands in it.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

if TYPE_CHECKING:
    from retrieval.bundle import Precision
    from retrieval.describer import Describer
    from retrieval.engines.choosing import ProviderChoice

ProviderOption = Annotated[
    str | None,
    typer.Option(envvar="SIGHTFIX_PROVIDER", help="Where to compute: auto, tensorrt, cuda, openvino or cpu"),
]
PrecisionOption = Annotated[
    str | None,
    typer.Option(envvar="SIGHTFIX_PRECISION", help="Of the bundle's graphs: fp32, fp16 or int8, fp32 if left out"),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option(envvar="SIGHTFIX_THREADS", min=1, help="Threads of the model on the CPU; every core if left out"),
]
CpuFallbackOption = Annotated[
    bool | None,
    typer.Option(
        "--allow-cpu-fallback",
        envvar="SIGHTFIX_ALLOW_CPU_FALLBACK",
        help="Compute on the CPU, with a warning, when the provider cannot be had",
    ),
]


def make_describer(
    bundle: Path | None,
    provider: str | None,
    precision: str | None,
    threads: int | None,
    allow_cpu_fallback: bool | None,
    *,
    default_provider: "ProviderChoice" = "auto",
) -> "Describer":
    """Open a bundle and a describer as the command line asks for.

    Args:
        bundle: the bundle; None is the shipped one.
        provider: where to compute; None is `default_provider`.
        precision: which of the bundle's graphs; None is fp32.
        threads: of the CPU; None takes every core.
        allow_cpu_fallback: whether the CPU may take the place of the provider.
        default_provider: `auto`, or what suits the command better.

    Raises:
        SightfixError: see `open_bundle` and `Describer`.
    """
    from retrieval.bundle import open_bundle
    from retrieval.describer import Describer

    return Describer(
        open_bundle(bundle),
        provider=cast("ProviderChoice", provider or default_provider),
        precision=cast("Precision", precision or "fp32"),
        threads=threads,
        allow_cpu_fallback=bool(allow_cpu_fallback),
        # Not on stdout, where the answer may be JSON.
        on_build=lambda what: typer.echo(f"wait: {what}", err=True),
    )
