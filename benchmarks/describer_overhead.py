"""What the describer costs above the runtime: Describer.describe ÷ bare session.run on the same arrays. Target: ≤ 1.03.

Both share one session and take turns, first one then the other, so that a busy machine slows both alike.
"""

import time
from collections.abc import Callable
from functools import partial

import numpy as np

from benchmarks.machine import describe_machine
from retrieval.bundle import INPUT_NAME, OUTPUT_NAME, open_bundle
from retrieval.describer import Describer
from retrieval.engines.onnx_runtime import OnnxRuntimeEngine

TURNS = {1: 400, 16: 40}
TARGET = 1.03


def main() -> None:
    """Print a line for each batch size, for one array and for a list of images."""
    describer = Describer(open_bundle())
    engine = describer._engine
    assert isinstance(engine, OnnxRuntimeEngine)
    session = engine._session
    preprocessing = describer.bundle.preprocessing
    print(f"describer overhead, the shipped bundle, target ≤ {TARGET}; {describe_machine()}")
    rng = np.random.default_rng(0)
    for batch, turns in TURNS.items():
        array = rng.integers(0, 256, (batch, preprocessing.height, preprocessing.width, 3), np.uint8)
        images = [image.copy() for image in array]
        bare = partial(session.run, [OUTPUT_NAME], {INPUT_NAME: array})
        for name, given in (("array", array), ("list", images)):
            describe = partial(describer.describe, given)
            ours, theirs = in_turn([describe, bare], turns)
            print(
                f"  batch {batch:2}, {name}: describe {ours * 1e3:.3f} ms, session.run {theirs * 1e3:.3f} ms, "
                f"ratio {ours / theirs:.4f}"
            )


def in_turn(calls: list[Callable[[], object]], turns: int) -> list[float]:
    """The median of each call in seconds, taken in turn; who begins alternates."""
    for call in calls:
        call()
    taken: list[list[float]] = [[] for _ in calls]
    for turn in range(turns):
        order = range(len(calls)) if turn % 2 == 0 else reversed(range(len(calls)))
        for place in order:
            started = time.perf_counter()
            calls[place]()
            taken[place].append(time.perf_counter() - started)
    return [float(np.median(times)) for times in taken]


if __name__ == "__main__":
    main()
