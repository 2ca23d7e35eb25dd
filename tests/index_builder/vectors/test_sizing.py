import math
from pathlib import Path

import numpy as np
import pytest

from index_builder.index_design import (
    MachineSpeed,
    build_candidates,
    measure_machine,
    memory_bytes,
    parameters_for,
    plan_indexes,
)
from retrieval.index.vectors.candidates import INDEX_TYPES
from retrieval.index.vectors.exact import ExactVectors

SPEED = MachineSpeed({"fp32": 0.25, "fp16": 0.25, "int8": 0.2}, 50.0)


@pytest.mark.parametrize("type_", [name for name in INDEX_TYPES if name != "exact"])
def test_predicted_memory_is_what_the_file_takes(type_: str, tmp_path: Path) -> None:
    rows, dim = 8000, 64
    descriptors = np.random.default_rng(0).normal(size=(rows, dim)).astype(np.float32)
    exact = ExactVectors.from_descriptors([descriptors], dim, "fp16")
    parameters = parameters_for(type_, rows, dim)
    candidates = build_candidates(exact, parameters)
    path = tmp_path / "candidates.faiss"
    with path.open("wb") as file:
        candidates.write(file.write)
    # Codes of fast scan are padded to blocks of 32 rows a list, and quantisers have tables.
    assert path.stat().st_size == pytest.approx(memory_bytes(parameters, rows, dim), rel=0.35)


def test_exact_search_of_a_million_is_what_the_machine_reads() -> None:
    planned = {(one.type, one.storage): one for one in plan_indexes(10**6, 512, SPEED)}
    assert planned["exact", "fp32"].latency_ms == pytest.approx(128.0)
    assert planned["exact", "fp16"].disk_bytes == 1_024_000_000
    assert planned["exact", "int8"].memory_bytes == 512_000_000 + 10**6 * 160
    assert planned["ivf", "fp16"].latency_ms < planned["exact", "fp16"].latency_ms / 5
    assert planned["ivf-pq-fast", "fp16"].memory_bytes < planned["ivf", "fp16"].memory_bytes / 4


def test_what_does_not_fit_is_said() -> None:
    fits = {one.type: one.fits for one in plan_indexes(50_000_000, 512, SPEED, 20 * 10**9)}
    assert (fits["ivf-pq-fast"], fits["ivf"], fits["hnsw"]) == (True, False, False)


def test_the_machine_is_measured() -> None:
    speed = measure_machine(64)
    assert speed.multiply_gflops > 0.1
    assert all(0 < value < math.inf for value in speed.scan_ns.values())
