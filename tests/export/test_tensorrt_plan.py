import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from export.tensorrt_plan import build_plan, publish_plan, timing_cache_path
from retrieval.artefact import hash_file
from retrieval.bundle import Bundle
from retrieval.engines.compiled import EngineKey, default_profiles
from retrieval.engines.tensorrt_plan import PlanManifest, check_plan, plan_key
from retrieval.errors import BundleError, EngineError, ProviderUnavailableError, StorageError
from tests.retrieval.engines.colour_bundle import HEIGHT, WIDTH, write_colour_bundle
from tests.retrieval.engines.fake_gpu import TOY_GPU, FakeCuda, FakeTensorRt, ParserError, toy_machine

REPOSITORY = Path(__file__).resolve().parents[2]
PROFILES = default_profiles(8)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write_colour_bundle(tmp_path / "bundle")


@pytest.fixture
def trt(monkeypatch: pytest.MonkeyPatch) -> FakeTensorRt:
    module = FakeTensorRt(FakeCuda())
    for name in ("export.tensorrt_plan", "retrieval.engines.tensorrt_library"):
        monkeypatch.setattr(f"{name}.load_tensorrt", lambda: module)
    monkeypatch.setattr("retrieval.engines.tensorrt_library.first_gpu", lambda: TOY_GPU)
    return module


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def key_of(bundle: Bundle, trt: FakeTensorRt) -> EngineKey:
    return plan_key(bundle, "fp16", PROFILES, toy_machine(trt))


def leftovers(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.name.startswith(".")]


def test_the_manifest_says_all_that_the_plan_depends_on(bundle: Bundle, trt: FakeTensorRt, cache: Path) -> None:
    path = build_plan(bundle, "fp16", PROFILES, cache=cache)
    key = key_of(bundle, trt)
    assert path == cache / key.folder / "model.plan"
    manifest = PlanManifest.read(path.parent)
    assert manifest.graph_sha256 == hash_file(bundle.folder / "model.fp16.onnx")
    assert manifest.files["model.plan"].sha256 == hash_file(path)
    assert (manifest.tensorrt_version, manifest.architecture) == ("11.4.0.106", "sm90")
    assert (manifest.device_name, manifest.precision, manifest.profiles) == ("Toy GPU", "fp16", "1:1:1,2:4:8")
    assert 0 <= manifest.build_seconds < 60
    assert check_plan(path, key) == manifest
    assert leftovers(cache) == []


def test_the_network_is_that_of_the_graph_in_its_own_types(bundle: Bundle, trt: FakeTensorRt, cache: Path) -> None:
    build_plan(bundle, "fp16", PROFILES, cache=cache)
    assert trt.parsed == [str(bundle.folder / "model.fp16.onnx")]
    (config,) = trt.configs
    assert config.flags == set(), "no TF32"
    assert config.pools == {"workspace": 4 << 30}
    assert [profile.sizes for profile in config.profiles] == [(1, 1, 1), (2, 4, 8)]
    assert {profile.image for profile in config.profiles} == {(HEIGHT, WIDTH, 3)}


def test_a_second_build_builds_nothing(bundle: Bundle, trt: FakeTensorRt, cache: Path) -> None:
    path = build_plan(bundle, "fp16", PROFILES, cache=cache)
    before = {file: file.stat().st_mtime_ns for file in cache.rglob("*")}
    assert build_plan(bundle, "fp16", PROFILES, cache=cache) == path
    assert {file: file.stat().st_mtime_ns for file in cache.rglob("*")} == before
    assert len(trt.configs) == 1


def test_each_precision_profile_and_tensorrt_has_a_plan_of_its_own(
    bundle: Bundle, trt: FakeTensorRt, cache: Path
) -> None:
    paths = [
        build_plan(bundle, "fp16", PROFILES, cache=cache),
        build_plan(bundle, "fp32", PROFILES, cache=cache),
        build_plan(bundle, "fp16", cache=cache),
    ]
    trt.__version__ = "10.16.1.11"
    paths.append(build_plan(bundle, "fp16", PROFILES, cache=cache))
    assert len(set(paths)) == 4
    assert all(path.is_file() for path in paths)


@pytest.mark.parametrize("damage", ["truncated", "no manifest"])
def test_a_damaged_plan_is_built_again(
    bundle: Bundle, trt: FakeTensorRt, cache: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = build_plan(bundle, "fp16", PROFILES, cache=cache)
    if damage == "truncated":
        path.write_bytes(b"PL")
    else:
        (path.parent / "manifest.json").unlink()
    with caplog.at_level(logging.WARNING, logger="sightfix.tensorrt"):
        assert build_plan(bundle, "fp16", PROFILES, cache=cache) == path
    assert "It is built again." in caplog.text
    check_plan(path, key_of(bundle, trt))
    assert leftovers(cache) == []


def test_two_builds_at_once_agree_on_one_plan(bundle: Bundle, trt: FakeTensorRt, cache: Path) -> None:
    """The second finishes while the first still builds; the first takes the second's and leaves nothing behind."""
    paths: list[Path] = []

    def meanwhile() -> None:
        trt.while_building = lambda: None
        paths.append(build_plan(bundle, "fp16", PROFILES, cache=cache))
        paths.append(paths[0].read_bytes())  # type: ignore[arg-type]

    trt.while_building = meanwhile
    path = build_plan(bundle, "fp16", PROFILES, cache=cache)
    assert len(trt.configs) == 2
    assert paths == [path, path.read_bytes()]
    assert leftovers(cache) == []


def test_a_plan_that_another_process_publishes_meanwhile_is_kept(
    bundle: Bundle, trt: FakeTensorRt, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other process renames between our look and our own rename."""
    path = build_plan(bundle, "fp16", PROFILES, cache=cache)
    other = shutil.copytree(path.parent, cache / ".tmp-other")
    exists = Path.exists
    monkeypatch.setattr(Path, "exists", lambda self: self != path.parent and exists(self))
    publish_plan(other, path.parent, key_of(bundle, trt))
    check_plan(path, key_of(bundle, trt))


def test_a_build_that_fails_leaves_nothing_and_says_why(bundle: Bundle, trt: FakeTensorRt, cache: Path) -> None:
    trt.refuses_to_build = True
    with pytest.raises(EngineError, match=r"cannot build a plan.*no tactic fits the workspace.*smaller") as caught:
        build_plan(bundle, "fp16", PROFILES, cache=cache)
    assert caught.value.code == "plan_not_built"
    assert [path for path in cache.rglob("*") if path.is_file()] == []
    assert leftovers(cache) == []


def test_a_graph_that_tensorrt_cannot_read_is_named_with_the_node(
    bundle: Bundle, trt: FakeTensorRt, cache: Path
) -> None:
    trt.parser_errors = [ParserError("node_permute", "Transpose", "no UINT8 types for intermediate tensors")]
    with pytest.raises(EngineError) as caught:
        build_plan(bundle, "fp16", PROFILES, cache=cache)
    assert "Transpose node_permute: no UINT8 types" in caught.value.what
    assert caught.value.where == str(bundle.folder / "model.fp16.onnx")
    assert "cast images to float before anything else" in str(caught.value.remedy)
    assert leftovers(cache) == []


def test_a_precision_that_the_bundle_lacks(bundle: Bundle, trt: FakeTensorRt, cache: Path) -> None:
    with pytest.raises(BundleError, match="the bundle has no int8 graph"):
        build_plan(bundle, "int8", PROFILES, cache=cache)
    assert not cache.exists()


def test_without_tensorrt_nothing_is_touched(bundle: Bundle, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(ProviderUnavailableError, match="TensorRT is not installed"):
        build_plan(bundle, "fp16", PROFILES, cache=cache)
    assert not cache.exists()


def test_a_cache_that_cannot_be_written_is_refused_before_the_build(
    bundle: Bundle, trt: FakeTensorRt, cache: Path
) -> None:
    cache.write_text("a file")
    with pytest.raises(StorageError, match="a file has its name"):
        build_plan(bundle, "fp16", PROFILES, cache=cache)
    assert trt.configs == []


def test_progress_is_reported_step_by_step(bundle: Bundle, trt: FakeTensorRt, cache: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    build_plan(bundle, "fp16", PROFILES, cache=cache, on_progress=lambda *step: seen.append(step))
    assert seen == [("Building", done, 2) for done in (0, 1, 2, 2)]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_what_progress_raises_stops_the_build(
    bundle: Bundle, trt: FakeTensorRt, cache: Path, error: type[BaseException]
) -> None:
    def on_progress(phase: str, done: int, total: int) -> None:
        raise error

    with pytest.raises(error):
        build_plan(bundle, "fp16", PROFILES, cache=cache, on_progress=on_progress)
    assert [path for path in cache.rglob("*") if path.is_file()] == []


def test_timings_are_kept_for_the_next_build(bundle: Bundle, trt: FakeTensorRt, cache: Path) -> None:
    build_plan(bundle, "fp16", PROFILES, cache=cache)
    build_plan(bundle, "fp32", PROFILES, cache=cache)
    path = timing_cache_path(cache, toy_machine(trt))
    assert path.read_bytes() == b"sm90 2"
    assert path.name == "sm90-trt11.4.0.106.bin"


def test_timings_of_another_gpu_are_measured_again(
    bundle: Bundle, trt: FakeTensorRt, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = timing_cache_path(cache, toy_machine(trt))
    path.parent.mkdir(parents=True)
    path.write_bytes(b"sm75 7")
    with caplog.at_level(logging.WARNING, logger="sightfix.tensorrt"):
        build_plan(bundle, "fp16", PROFILES, cache=cache)
    assert path.read_bytes() == b"sm90 1"
    assert "not for this TensorRT and GPU" in caplog.text


def test_timings_that_cannot_be_kept_do_not_lose_the_plan(
    bundle: Bundle, trt: FakeTensorRt, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache.mkdir()
    (cache / "timing-caches").write_text("in the way")
    with caplog.at_level(logging.WARNING, logger="sightfix.tensorrt"):
        assert build_plan(bundle, "fp16", PROFILES, cache=cache).is_file()
    assert "the timings were not kept" in caplog.text


def test_building_a_plan_needs_neither_torch_nor_onnx() -> None:
    script = "import sys, export.tensorrt_plan; print({'torch', 'onnx', 'onnxruntime', 'timm'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_manifest_is_plain_json(bundle: Bundle, trt: FakeTensorRt, cache: Path) -> None:
    path = build_plan(bundle, "fp16", PROFILES, cache=cache)
    manifest = json.loads((path.parent / "manifest.json").read_text())
    assert (manifest["kind"], manifest["format_version"]) == ("engine", 1)


def consumers_of_uint8(model: onnx.ModelProto) -> set[str]:
    """What reads the input: TensorRT takes uint8 from outside, and lets a Cast read it and nothing else."""
    return {node.op_type for node in model.graph.node if "images" in node.input}


def test_the_shipped_graph_casts_before_anything_else() -> None:
    model = onnx.load(REPOSITORY / "retrieval" / "default_bundle" / "model.onnx")
    assert consumers_of_uint8(model) == {"Cast"}
