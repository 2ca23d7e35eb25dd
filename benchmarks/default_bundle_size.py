"""Which input size, resize rule and filter the shipped bundle should have: recall on bgu_campus against time.

Recall of both protocols at 25 m with 95 % intervals (bootstrap over places), and milliseconds a photo on this machine.
"""

import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.campus import PROTOCOLS, describe_campus
from benchmarks.machine import describe_machine
from export.default_bundle import make_default_bundle
from retrieval.describer import Describer
from retrieval.images import Preprocessing

CANDIDATES = [
    Preprocessing(height=192, width=192),
    Preprocessing(height=224, width=224),
    Preprocessing(height=256, width=192),
    Preprocessing(height=256, width=256),
    Preprocessing(height=256, width=256, filter="bilinear"),
    Preprocessing(height=256, width=256, fit="crop"),
    Preprocessing(height=256, width=256, fit="pad"),
    Preprocessing(height=240, width=320),
    Preprocessing(height=288, width=288),
    Preprocessing(height=320, width=320),
]


def main() -> None:
    """Print a Markdown table."""
    print(f"default bundle sizes on bgu_campus, 25 m; {describe_machine()}\n")
    print("| input | ms/photo, batch 1 | batch 16 | " + " | ".join(f"{name} R@1/5/10" for name in PROTOCOLS) + " |")
    print("|---|---|---|---|---|")
    for preprocessing in CANDIDATES:
        with tempfile.TemporaryDirectory() as folder:
            describer = Describer(make_default_bundle(Path(folder) / "bundle", preprocessing))
        one, sixteen = (_ms_a_photo(describer, batch) for batch in (1, 16))
        campus = describe_campus(describer)
        name = f"{preprocessing.height}×{preprocessing.width} {preprocessing.fit}, {preprocessing.filter}"
        cells = [_recalls(campus.evaluate(protocol).recall[0].at) for protocol in PROTOCOLS]
        print(f"| {name} | {one:.1f} | {sixteen:.1f} | " + " | ".join(cells) + " |", flush=True)


def _ms_a_photo(describer: Describer, batch: int) -> float:
    size = describer.bundle.preprocessing
    images = np.random.default_rng(0).integers(0, 256, (batch, size.height, size.width, 3), dtype=np.uint8)
    times = []
    for _ in range(20):
        started = time.perf_counter()
        describer.describe(images)
        times.append((time.perf_counter() - started) / batch)
    return float(np.median(times)) * 1e3


def _recalls(at: tuple) -> str:  # type: ignore[type-arg]
    first = at[0].recall
    values = "/".join(f"{100 * entry.recall.value:.1f}" for entry in at if entry.n in (1, 5, 10))
    return f"{values} ({100 * first.low:.1f}–{100 * first.high:.1f}; chance {100 * at[0].chance:.1f})"


if __name__ == "__main__":
    main()
