from pathlib import Path

import pytest

from retrieval.bundle import Bundle
from retrieval.engines.compiled import BatchProfile, default_profiles
from retrieval.engines.cuda import NvidiaGpu
from retrieval.engines.engine import EngineRequest
from retrieval.engines.onnx_runtime_gpu import (
    engine_failure,
    new_engine_folder,
    open_tensorrt_provider,
    provider_key,
    tensorrt_provider_options,
)
from retrieval.engines.tensorrt_library import linked_tensorrt, load_linked_tensorrt, version_text
from retrieval.errors import ProviderUnavailableError, StorageError
from tests.retrieval.refusal import refused

FOLDER = Path("/cache/engine")
SEVERAL = BatchProfile(2, 16, 32)


def test_shapes_are_explicit_so_that_no_batch_builds_again() -> None:
    options = tensorrt_provider_options(FOLDER, SEVERAL, (256, 320, 3), "fp32")
    assert options == {
        "device_id": "0",
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": "/cache/engine/b2-16-32",
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": "/cache/engine/timing",
        "trt_profile_min_shapes": "images:2x256x320x3",
        "trt_profile_opt_shapes": "images:16x256x320x3",
        "trt_profile_max_shapes": "images:32x256x320x3",
    }


def test_two_profiles_never_share_an_engine_file() -> None:
    paths = {
        tensorrt_provider_options(FOLDER, profile, (256, 256, 3), "fp32")["trt_engine_cache_path"]
        for profile in default_profiles(32).profiles
    }
    assert paths == {"/cache/engine/b1-1-1", "/cache/engine/b2-16-32"}


@pytest.mark.parametrize(
    ("precision", "flags"),
    [
        ("fp32", {}),
        ("fp16", {"trt_fp16_enable": "1", "trt_layer_norm_fp32_fallback": "1"}),
        ("int8", {"trt_int8_enable": "1"}),
    ],
)
def test_the_flags_of_a_precision(precision: str, flags: dict[str, str]) -> None:
    options = tensorrt_provider_options(FOLDER, SEVERAL, (256, 256, 3), precision)  # type: ignore[arg-type]
    of_precision = {"trt_fp16_enable", "trt_layer_norm_fp32_fallback", "trt_int8_enable", "trt_bf16_enable"}
    assert {name: value for name, value in options.items() if name in of_precision} == flags


def test_the_key_holds_the_graph_that_runs_and_who_built(small: Bundle) -> None:
    key = provider_key(
        EngineRequest(small, "int8", profiles=default_profiles(8)), "10.13.3", NvidiaGpu("H100", "sm90"), "1.31.1"
    )
    assert key.graph_sha256 == small.manifest.files["model.int8.onnx"].sha256
    assert key.folder.name == "sm90-trt10.13.3-int8-b1-1-1_2-4-8-onnxruntime-1.31.1"


def test_the_tensorrt_that_the_provider_was_linked_with(tmp_path: Path) -> None:
    library = tmp_path / "provider.so"
    library.write_bytes(b"\x7fELF\0libcublas.so.13\0libnvinfer.so.10\0libnvonnxparser.so.10\0")
    assert linked_tensorrt(library) == "libnvinfer.so.10"
    library.write_bytes(b"\x7fELF")
    with pytest.raises(ProviderUnavailableError, match="names no TensorRT"):
        linked_tensorrt(library)
    with pytest.raises(ProviderUnavailableError, match="cannot be read"):
        linked_tensorrt(tmp_path / "none.so")


def test_a_missing_tensorrt_names_the_major_version_that_fits(tmp_path: Path) -> None:
    library = tmp_path / "provider.so"
    library.write_bytes(b"libnvinfer.so.77\0")
    text = (
        "ONNX Runtime's TensorRT provider needs libnvinfer.so.77, which is not installed. "
        "Run: pip install 'tensorrt-cu13>=77,<78', or choose the provider cuda."
    )
    with refused(ProviderUnavailableError, text, "provider_unavailable"):
        load_linked_tensorrt(library)


@pytest.mark.parametrize(("number", "text"), [(101303, "10.13.3"), (100000, "10.0.0"), (110401, "11.4.1")])
def test_version_numbers(number: int, text: str) -> None:
    assert version_text(number) == text


def test_an_int8_graph_that_fails_has_a_remedy() -> None:
    text = (
        "TensorRT cannot build the int8 engine (zeroPt must be all zeros). TensorRT quantises symmetrically only: "
        "every zero point must be 0. Export a symmetric int8 graph, or choose fp16 or the provider cuda."
    )
    assert str(engine_failure("int8", RuntimeError("zeroPt must\n be all zeros"), cached=None)) == text


def test_a_damaged_engine_of_the_cache_is_named_by_its_folder() -> None:
    text = (
        "/cache/engine: TensorRT cannot load the int8 engine (bad magic). "
        "Delete this folder to build it again, or choose the provider cuda."
    )
    assert str(engine_failure("int8", RuntimeError("bad magic"), cached=FOLDER)) == text


def test_only_a_whole_engine_gets_into_the_cache(tmp_path: Path) -> None:
    final = tmp_path / "cache" / "graph" / "engine"

    def fail_half_way() -> None:
        with new_engine_folder(final) as building:
            (building / "half.engine").write_bytes(b"half")
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        fail_half_way()
    assert list(final.parent.iterdir()) == []
    with new_engine_folder(final) as building:
        (building / "whole.engine").write_bytes(b"whole")
        assert not final.exists()
    assert [path.name for path in final.iterdir()] == ["whole.engine"]
    assert list(final.parent.iterdir()) == [final]


def test_of_two_that_build_at_once_the_first_stays(tmp_path: Path) -> None:
    final = tmp_path / "engine"
    with new_engine_folder(final) as slow:
        (slow / "slow").touch()
        with new_engine_folder(final) as fast:
            (fast / "fast").touch()
    assert [path.name for path in final.iterdir()] == ["fast"]
    assert list(tmp_path.iterdir()) == [final]


def test_a_cache_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    final = tmp_path / "file" / "engine"
    text = (
        f"{final.parent}: the engine cache cannot be written (File exists). "
        "Point SIGHTFIX_ENGINE_CACHE to a folder that can be written and is kept."
    )
    with refused(StorageError, text, "storage"), new_engine_folder(final):
        pass


@pytest.mark.gpu
def test_the_second_start_builds_nothing(small: Bundle, tmp_path: Path) -> None:
    messages: list[str] = []
    request = EngineRequest(small, threads=1, profiles=default_profiles(4), cache=tmp_path, on_build=messages.append)
    for _ in range(2):
        open_tensorrt_provider(request).close()
    assert len(messages) == 1
    assert "first start only" in messages[0]
