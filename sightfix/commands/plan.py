"""`sightfix plan`: how large and how quick an index will be, before there is one."""

from typing import Annotated

import typer


def plan(
    references: Annotated[str, typer.Option(help="How many photos, such as 300000 or 50M")],
    dim: Annotated[int, typer.Option(min=1, max=65_536, help="Numbers in a stored descriptor")] = 1280,
    memory: Annotated[str | None, typer.Option(help="RAM there is for the index, such as 64G")] = None,
) -> None:
    """Predict memory, disk, building time and latency of each type of index on a machine like this one."""
    from index_builder.vectors.sizing import measure_machine, plan_indexes
    from sightfix.console import console
    from sightfix.index_console import bytes_text, show_plan
    from sightfix.quantities import parse_bytes, parse_count

    rows = parse_count(references)
    limit = None if memory is None else parse_bytes(memory)
    speed = measure_machine(dim)
    console.print(
        f"{rows:,} references of {dim} numbers"
        + ("" if limit is None else f", {bytes_text(limit)} of memory")
        + f"; this machine multiplies {speed.multiply_gflops:.0f} GFLOP/s and scans fp16 descriptors at "
        f"{2 / speed.scan_ns['fp16']:.1f} GB/s"
    )
    show_plan(plan_indexes(rows, dim, speed, limit))
    console.print(
        "Predicted, for a recall@10 of about 95 %; describing the photos comes before and is not in it. "
        "Half the numbers, half of everything: --whiten when indexing. Beside approximate types the stored "
        "descriptors stay on the disk; `sightfix index --type auto` measures instead of predicting."
    )
