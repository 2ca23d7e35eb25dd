"""How soon a large index answers after it was opened, and what it takes of the memory.

    python -m benchmarks.index_opening --rows 1000000 --dim 512

A version of synthetic descriptors and rows is written, exact and ivf; then fresh processes open it, with and without
memory mapping, and ask it two queries. Without, every file is read and compared with its hash first.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.index_types import clustered
from benchmarks.machine import describe_machine
from index_builder.index_design import IndexDesign
from index_builder.version_writer import VersionContent, write_version
from retrieval.bundle import open_bundle
from retrieval.index.manifest import Source
from retrieval.index.reference_table import REFERENCE_SCHEMA
from retrieval.index.vectors.candidates import INDEX_TYPES

_OPENER = """
import json, resource, sys, time
from pathlib import Path
import numpy as np
from retrieval.place_index import PlaceIndex
import retrieval.index.vectors.faiss_library as library
library.faiss_module()
folder, mapped, dim = Path(sys.argv[1]), sys.argv[2] == "mapped", int(sys.argv[3])
query = np.random.default_rng(0).standard_normal((1, dim)).astype(np.float32)
query /= np.linalg.norm(query)
def resident(which=1):  # all of it; with 2 the pages of files, which the kernel takes back when it needs them
    return int(open("/proc/self/statm").read().split()[which]) * resource.getpagesize() / 1e6
before, files, started = resident(), resident(2), time.perf_counter()
index = PlaceIndex.open(folder, memory_map=mapped)
opened, memory = time.perf_counter() - started, resident() - before
found = index.search(query, 10)
first = index.references(found.rows[0])
answered = time.perf_counter() - started
started = time.perf_counter()
index.references(index.search(query, 10).rows[0])
again = time.perf_counter() - started
print(json.dumps({"opened_s": opened, "answered_s": answered, "again_s": again, "memory_mb": memory,
                  "memory_after_mb": resident() - before, "files_mb": resident(2) - files, "first": first[0].id}))
"""


def table_of(rows: int) -> pa.Table:
    """References along streets of a town, with what photos of a survey have."""
    draw = np.random.default_rng(0)
    names = [f"survey/2026/{row // 1000:04d}/{row:07d}.jpg" for row in range(rows)]
    values: dict[str, Any] = {name: [None] * rows for name in REFERENCE_SCHEMA.names}
    values.update(
        id=names,
        path=names,
        lat=48.0 + draw.random(rows) * 0.2,
        lon=11.4 + draw.random(rows) * 0.3,
        heading_deg=draw.random(rows) * 360,
        session=[f"drive-{row // 5000}" for row in range(rows)],
        captured_at=["2026-05-04T10:00:00+00:00"] * rows,
    )
    return pa.Table.from_pydict(values, schema=REFERENCE_SCHEMA)


def opened(folder: Path, mapped: bool, dim: int) -> dict[str, Any]:
    """Open in a fresh process."""
    arguments = [sys.executable, "-c", _OPENER, str(folder), "mapped" if mapped else "read", str(dim)]
    answer: dict[str, Any] = json.loads(subprocess.run(arguments, check=True, capture_output=True, text=True).stdout)
    return answer


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--types", nargs="*", choices=INDEX_TYPES, default=["exact", "ivf"])
    parser.add_argument("--storage", default="fp32")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    print(describe_machine())
    descriptors, table = clustered(arguments.rows, arguments.dim), table_of(arguments.rows)
    print(
        f"{arguments.rows} × {arguments.dim} stored as {arguments.storage}; files in the page cache; least of "
        f"{arguments.rounds} fresh processes\n\n"
        "| type | GB | written s | opened | seconds open | to first answer | the next | resident MB: open | "
        "after two answers, of them files |\n|---|---|---|---|---|---|---|---|---|"
    )
    for type_ in arguments.types:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            content = VersionContent(
                name="large",
                version="1",
                bundle=open_bundle(),
                source=Source(spec="synthetic", root="/photos"),
                table=table,
                described=lambda rows: descriptors[rows],
            )
            design = IndexDesign(storage=arguments.storage, type=type_, calibrate=False)
            started = time.perf_counter()
            write_version(folder, content, design)
            seconds = time.perf_counter() - started
            size = sum(path.stat().st_size for path in folder.iterdir()) / 1e9
            for mapped in (True, False):
                runs = [opened(folder, mapped, arguments.dim) for _ in range(arguments.rounds)]
                best = min(runs, key=lambda run: float(run["answered_s"]))
                print(
                    f"| {type_} | {size:.2f} | {seconds:.0f} | {'memory-mapped' if mapped else 'read and hashed'} | "
                    f"{best['opened_s']:.3f} | {best['answered_s']:.3f} | {best['again_s']:.4f} | "
                    f"{best['memory_mb']:.0f} | {best['memory_after_mb']:.0f}, {best['files_mb']:.0f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
