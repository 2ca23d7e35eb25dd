from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from benchmarks import gpu_check
from benchmarks.gpu_describing import Describing, difference, medians_in_turn, snapshot, worst_cosine
from benchmarks.gpu_outcome import FailedError, Outcome, Report, SkippedError, Timing
from retrieval.describer import Describer
from retrieval.engines.engine import EngineDescription
from retrieval.errors import ProviderUnavailableError
from tests.retrieval.engines.colour_bundle import write_colour_bundle
from tests.retrieval.engines.fake_gpu import IMAGE, TOY_GPU, FakeCuda, FakeTensorRt


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise ProviderUnavailableError("there is no NVIDIA driver")

    monkeypatch.setattr(gpu_check, "first_gpu", missing)


@pytest.fixture
def describing(tmp_path: Path) -> Describing:
    """The colour bundle with images of its own, no town to draw."""
    made = Describing(write_colour_bundle(tmp_path / "bundle"), None, Report(), tmp_path / "work")
    made.images = np.random.default_rng(0).integers(1, 256, (64, *IMAGE), dtype=np.uint8)
    return made


def test_without_a_gpu_everything_is_skipped_with_its_reason(
    no_gpu: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gpu_check.main(["--out", str(tmp_path / "results.md")]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("SKIPPED")]
    assert len(lines) == 20
    assert all("no GPU: there is no NVIDIA driver" in line for line in lines)
    text = (tmp_path / "results.md").read_text()
    assert "| native TensorRT plan, fp16 | SKIPPED | no GPU:" in text
    assert text.endswith("0 PASS, 0 FAIL, 20 SKIPPED\n")


def test_beside_a_gpu_what_is_not_installed_is_skipped_and_the_rest_runs(
    monkeypatch: pytest.MonkeyPatch, describing: Describing
) -> None:
    monkeypatch.setattr(gpu_check, "first_gpu", lambda: TOY_GPU)
    monkeypatch.setattr(gpu_check, "_provider_missing", lambda provider: f"no {provider}")
    monkeypatch.setattr(gpu_check, "native_tensorrt_missing", lambda: "no tensorrt")
    monkeypatch.setattr(gpu_check, "faiss_gpu_missing", lambda: None)
    monkeypatch.setattr(gpu_check, "torch_gpu_missing", lambda: "no torch")

    def slow() -> str:
        raise FailedError("other scores")

    monkeypatch.setattr(gpu_check, "faiss_parity", slow)
    monkeypatch.setattr(gpu_check, "gpu_tests", lambda: "5 passed")
    monkeypatch.setattr(gpu_check, "selector_on_gpu", lambda kind: f"{kind} selects")
    monkeypatch.setattr(gpu_check, "index_on_gpu", lambda kind, count: f"{kind} of {count}")
    monkeypatch.setattr(gpu_check, "cagra_on_gpu", lambda count: f"cagra of {count}")
    report, told = Report(), []
    gpu_check.run_checks(report, describing, tell=told.append)
    results = {outcome.item: (outcome.status, outcome.detail) for outcome in report.outcomes}
    assert results["environment"][0] == "PASS"
    assert results["environment"][1].startswith("Toy GPU (sm90), ")
    assert results["tests marked gpu"] == ("PASS", "5 passed")
    assert results["cuda fp32 against cpu fp32"] == ("SKIPPED", "no cuda")
    assert results["TensorRT through ONNX Runtime, fp16"] == ("SKIPPED", "no tensorrt")
    assert results["FAISS exact search on the GPU"] == ("FAIL", "other scores")
    assert results["selector on the GPU, ivf"] == ("PASS", "ivf selects")
    assert results["index on the GPU, exact, 10000000 rows"] == ("PASS", "exact of 10000000")
    assert results["index on the GPU, cagra, 1000000 rows"] == ("PASS", "cagra of 1000000")
    assert len(told) == len(report.outcomes) == 20
    assert report.exit_code == 1


def test_an_item_never_ends_the_script() -> None:
    def fails(error: Exception) -> Callable[[], str]:
        def function() -> str:
            raise error

        return function

    report = Report()
    assert report.check("a", lambda: "fine") == Outcome("a", "PASS", "fine")
    assert report.check("b", fails(SkippedError("no torch"))) == Outcome("b", "SKIPPED", "no torch")
    assert report.exit_code == 0
    assert report.check("c", fails(RuntimeError("cuDNN | broken"))).status == "FAIL"
    assert report.exit_code == 1
    report.timings.append(Timing("cuda", "fp16", 8, 2.0))
    text = report.markdown("toy")
    assert "| c | FAIL | RuntimeError: cuDNN \\| broken |" in text
    assert "| cuda | fp16 | 8 | 2.00 | 4000 |" in text
    assert "1 PASS, 1 FAIL, 1 SKIPPED" in text


def test_a_runtime_that_describes_as_the_cpu_does_passes(describing: Describing) -> None:
    cpu = Describer(describing.bundle, provider="cpu")
    assert describing.check(cpu.describe, "cpu", "fp32").startswith("worst cosine 1.000000 over 64 images")
    assert [timing.batch for timing in describing.report.timings] == [1, 8, 32]


def swapped(descriptors: np.ndarray) -> np.ndarray:
    return np.roll(descriptors, 1, axis=0) if len(descriptors) == 3 else descriptors


def one_wrong(descriptors: np.ndarray) -> np.ndarray:
    return np.concatenate([descriptors[:-1], np.roll(descriptors[-1:], 1, axis=1)])


@pytest.mark.parametrize("damage", [swapped, one_wrong, lambda descriptors: descriptors * np.nan])
def test_one_wrong_descriptor_fails(describing: Describing, damage: Callable[[np.ndarray], np.ndarray]) -> None:
    # Colours that lie far apart: grey noise would hide a swap.
    describing.images[...] = 1
    describing.images[np.arange(64), ..., np.arange(64) % 3] = 255
    cpu = Describer(describing.bundle, provider="cpu")
    with pytest.raises(FailedError, match=r"at least 0\.9999 is wanted"):
        describing.check(lambda images: damage(cpu.describe(images)), "damaged", "fp32")


def test_the_native_door_is_built_found_opened_and_taken_by_the_describer(
    describing: Describing, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda = FakeCuda()
    trt = FakeTensorRt(cuda)
    for module in ("retrieval.engines.tensorrt_library", "retrieval.engines.tensorrt_plan", "export.tensorrt_plan"):
        monkeypatch.setattr(f"{module}.load_tensorrt", lambda: trt)
    monkeypatch.setattr("retrieval.engines.tensorrt_library.first_gpu", lambda: TOY_GPU)
    monkeypatch.setattr("retrieval.engines.tensorrt_plan.open_cuda", lambda: cuda)
    assert "worst cosine 1.000000" in describing.native_plan("fp16")
    assert {timing.runtime for timing in describing.report.timings} == {"native: TensorRT 11.4.0.106"}
    assert len(trt.configs) == 1
    assert cuda.held == 0
    with pytest.raises(SkippedError, match="the bundle has no int8 graph"):
        describing.native_plan("int8")


@pytest.mark.parametrize(("writes", "said"), [([1, 0], None), ([1, 1], "the second start changed"), ([0, 0], "empty")])
def test_a_second_start_must_not_build(
    describing: Describing, monkeypatch: pytest.MonkeyPatch, writes: list[int], said: str | None
) -> None:
    starts = iter(writes)

    class Building(Describer):
        """A describer whose start writes a file of the cache, or does not."""

        def __init__(self, *args: object, engine_cache: Path, **_: object) -> None:
            super().__init__(describing.bundle, provider="cpu")
            engine_cache.mkdir(parents=True, exist_ok=True)
            if next(starts):
                (engine_cache / "model.engine").write_bytes(np.random.default_rng().bytes(9))

        def warm_up(self) -> None:
            """Nothing: black has no mean colour."""

    describing.fp32 = Describer(describing.bundle).describe(describing.images)
    monkeypatch.setattr("benchmarks.gpu_describing.Describer", Building)
    if said is None:
        assert "first start" in describing.provider_cache("fp16")
    else:
        with pytest.raises(FailedError, match=said):
            describing.provider_cache("fp16")


def test_files_are_compared_by_name_size_and_time(tmp_path: Path) -> None:
    for name in ("kept", "gone", "changed"):
        (tmp_path / name).write_text(name)
    before = snapshot(tmp_path)
    (tmp_path / "gone").unlink()
    (tmp_path / "changed").write_text("other")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "new").touch()
    assert difference(before, snapshot(tmp_path)) == ["changed", "folder/new", "gone"]
    assert difference(before, before) == []


def test_functions_are_timed_in_turn() -> None:
    calls: list[str] = []
    times = medians_in_turn([lambda: calls.append("a"), lambda: calls.append("b")], rounds=3)
    assert "".join(calls) == "aaaaabbbbbababab"
    assert len(times) == 2
    assert all(time > 0 for time in times)


def test_the_worst_cosine_is_the_lowest_row() -> None:
    truth = np.eye(3, dtype=np.float32)
    ours = np.array([[1, 0, 0], [0, 0.6, 0.8], [0, 0, 1]], np.float32)
    assert worst_cosine(ours, truth) == pytest.approx(0.6)
    assert np.isnan(worst_cosine(ours * np.float32("nan"), truth))


def test_a_description_says_which_door(describing: Describing) -> None:
    """`native_plan` and `provider_cache` tell the doors apart by the runtime's name."""
    description = Describer(describing.bundle).description
    assert isinstance(description, EngineDescription)
    assert description.runtime.startswith("ONNX Runtime ")
