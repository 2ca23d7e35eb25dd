"""Triton's repository, read back through the protobuf that Triton publishes."""

import errno
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2
from tritonclient.utils import triton_to_np_dtype

from export import triton
from export.triton import TritonManifest, model_name, write_triton_repository
from retrieval.bundle import Bundle, ParityReport, Provenance
from retrieval.bundle.writer import BundleContent, write_bundle
from retrieval.describer import Describer
from retrieval.errors import BundleError, ParameterError, StorageError
from retrieval.images import Preprocessing
from tests.retrieval.mean_colour import mean_colour_graph
from tests.retrieval.refusal import refused

HEIGHT, WIDTH = 16, 32


@pytest.fixture
def colours(tmp_path: Path) -> Bundle:
    """A bundle of two precisions whose name is no name for a folder."""
    content = BundleContent(
        name='mean "colour" / ü',
        graphs={"fp32": mean_colour_graph(HEIGHT, WIDTH), "fp16": mean_colour_graph(HEIGHT, WIDTH)},
        preprocessing=Preprocessing(height=HEIGHT, width=WIDTH),
        descriptor_dim=3,
        provenance=Provenance(
            backbone="none", aggregation="mean", weights="none", weights_licence="none", training_data="none"
        ),
        parity=ParityReport(reference="paper", images=0, min_cosine=1.0),
        licence="Apache-2.0",
    )
    return write_bundle(tmp_path / "bundle", content)


def config_of(folder: Path, model: str) -> Any:
    """Parsed strictly: an unknown field or a wrong type is an error."""
    return text_format.Parse((folder / model / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())


def test_every_precision_is_a_model(colours: Bundle, tmp_path: Path) -> None:
    manifest = write_triton_repository(colours, tmp_path / "models")
    assert manifest.models == {"fp32": "mean-colour-fp32", "fp16": "mean-colour-fp16"}
    assert manifest.bundle_fingerprint == colours.fingerprint
    assert {path.name for path in (tmp_path / "models").iterdir() if path.is_dir()} == set(manifest.models.values())
    for precision, name in manifest.models.items():
        graph = tmp_path / "models" / name / "1" / "model.onnx"
        assert graph.read_bytes() == colours.graph_path(precision).read_bytes()


def test_the_configuration_is_what_the_graph_is(colours: Bundle, tmp_path: Path) -> None:
    """By Triton's rules: `dims` go without the batch, which is at most `max_batch_size`."""
    write_triton_repository(colours, tmp_path / "models", max_batch=8, queue_delay_us=500, instances=2, kind="gpu")
    name = model_name(colours, "fp32")
    config = config_of(tmp_path / "models", name)
    session = onnxruntime.InferenceSession(str(tmp_path / "models" / name / "1" / config.default_model_filename))
    for stated, real in (
        (config.input, session.get_inputs()),
        (config.output, session.get_outputs()),
    ):
        assert [value.name for value in stated] == [value.name for value in real]
        assert [["N", *value.dims] for value in stated] == [value.shape for value in real]
    types = [model_config_pb2.DataType.Name(value.data_type) for value in (*config.input, *config.output)]
    assert [triton_to_np_dtype(kind.removeprefix("TYPE_")) for kind in types] == [np.uint8, np.float32]
    assert config.name == name
    assert config.backend == "onnxruntime"
    assert config.max_batch_size == 8
    assert config.HasField("dynamic_batching")
    assert config.dynamic_batching.max_queue_delay_microseconds == 500
    (group,) = config.instance_group
    assert (model_config_pb2.ModelInstanceGroup.Kind.Name(group.kind), group.count) == ("KIND_GPU", 2)
    assert not config.HasField("optimization")


def test_warm_up_batches_run(colours: Bundle, tmp_path: Path) -> None:
    write_triton_repository(colours, tmp_path / "models", max_batch=4)
    config = config_of(tmp_path / "models", model_name(colours, "fp32"))
    assert [sample.batch_size for sample in config.model_warmup] == [1, 4]
    describer = Describer(colours, threads=1)
    for sample in config.model_warmup:
        (blank,) = sample.inputs.values()
        assert blank.zero_data
        assert list(blank.dims) == list(config.input[0].dims)
        ones = np.ones((sample.batch_size, *blank.dims), np.uint8)
        assert describer.describe(ones).shape == (sample.batch_size, *config.output[0].dims)
    assert len(write_triton_repository(colours, tmp_path / "one", max_batch=1).models) == 2
    assert len(config_of(tmp_path / "one", model_name(colours, "fp32")).model_warmup) == 1


def test_the_configuration_says_which_bundle(colours: Bundle, tmp_path: Path) -> None:
    write_triton_repository(colours, tmp_path / "models")
    config = config_of(tmp_path / "models", model_name(colours, "fp16"))
    stated = {key: value.string_value for key, value in config.parameters.items()}
    assert stated["sightfix_fingerprint"] == colours.fingerprint
    assert stated["sightfix_precision"] == "fp16"
    assert stated["sightfix_name"] == 'mean "colour" / ü'
    assert Preprocessing.model_validate_json(stated["sightfix_preprocessing"]) == colours.preprocessing


def test_tensorrt_with_one_profile_and_a_cache(colours: Bundle, tmp_path: Path) -> None:
    write_triton_repository(colours, tmp_path / "models", tensorrt=True, engine_cache="/engines/", max_batch=16)
    for precision in ("fp32", "fp16"):
        config = config_of(tmp_path / "models", f"mean-colour-{precision}")
        (accelerator,) = config.optimization.execution_accelerators.gpu_execution_accelerator
        assert accelerator.name == "tensorrt"
        options = dict(accelerator.parameters)
        assert options.pop("precision_mode") == precision.upper()
        assert options.pop("trt_layer_norm_fp32_fallback", None) == ("1" if precision == "fp16" else None)
        assert options == {
            "trt_profile_min_shapes": "images:1x16x32x3",
            "trt_profile_opt_shapes": "images:8x16x32x3",
            "trt_profile_max_shapes": "images:16x16x32x3",
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": f"/engines/mean-colour-{precision}-{colours.fingerprint[:12]}",
            "trt_timing_cache_enable": "1",
            "trt_timing_cache_path": "/engines",
        }


def test_settings_that_cannot_be(colours: Bundle, tmp_path: Path) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"max_batch": 0}, "is too small"),
        ({"queue_delay_us": -1}, "is too small"),
        ({"kind": "tpu"}, "the kind 'tpu' is unknown. Choose auto, gpu or cpu."),
        ({"tensorrt": True, "kind": "cpu"}, "TensorRT runs on a GPU, and kind is cpu. Choose auto or gpu."),
        ({"engine_cache": "/engines"}, "Set tensorrt as well."),
    ]
    for settings, text in cases:
        with pytest.raises(ParameterError) as caught:
            write_triton_repository(colours, tmp_path / "models", **settings)
        assert text in str(caught.value)
    with pytest.raises(BundleError, match=r"no int8 graph.*Choose among fp32, fp16"):
        write_triton_repository(colours, tmp_path / "models", precisions=["int8"])
    assert not (tmp_path / "models").exists()


def test_only_the_asked_precisions(colours: Bundle, tmp_path: Path) -> None:
    write_triton_repository(colours, tmp_path / "models", precisions=["fp16"])
    assert {path.name for path in (tmp_path / "models").iterdir() if path.is_dir()} == {"mean-colour-fp16"}


def test_what_it_wrote_is_replaced(colours: Bundle, tmp_path: Path) -> None:
    write_triton_repository(colours, tmp_path / "models", max_batch=8)
    manifest = write_triton_repository(colours, tmp_path / "models", precisions=["fp32"], max_batch=4)
    assert config_of(tmp_path / "models", "mean-colour-fp32").max_batch_size == 4
    assert not (tmp_path / "models" / "mean-colour-fp16").exists()
    assert TritonManifest.read(tmp_path / "models") == manifest
    assert {path.name for path in tmp_path.iterdir()} == {"bundle", "models"}
    (tmp_path / "empty").mkdir()
    write_triton_repository(colours, tmp_path / "empty")


def test_what_others_wrote_stays(colours: Bundle, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "theirs.txt").write_text("irreplaceable")
    text = (
        f"{folder}: the folder exists and is no Triton repository that sightfix wrote. "
        "Choose another folder, or remove it."
    )
    with refused(ParameterError, text, "validation_error"):
        write_triton_repository(colours, folder)
    with pytest.raises(ParameterError, match="is no Triton repository"):
        write_triton_repository(colours, folder / "theirs.txt")
    with pytest.raises(ParameterError, match="is no Triton repository"):
        write_triton_repository(colours, colours.folder)
    assert (folder / "theirs.txt").read_text() == "irreplaceable"


def test_what_was_changed_by_hand_stays(colours: Bundle, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    write_triton_repository(colours, folder)
    config = folder / "mean-colour-fp32" / "config.pbtxt"
    before = config.read_text()
    config.write_text(before.replace("count: 1", "count: 4"))
    with pytest.raises(ParameterError, match=r"config.pbtxt: .* was changed after sightfix wrote it. Keep what you"):
        write_triton_repository(colours, folder)
    assert "count: 4" in config.read_text()
    config.write_text(before)
    (folder / "theirs" / "1").mkdir(parents=True)
    (folder / "theirs" / "1" / "model.onnx").write_bytes(b"")
    with pytest.raises(ParameterError, match=r"files that sightfix did not write: 1, such as theirs/1/model.onnx"):
        write_triton_repository(colours, folder)
    assert (folder / "theirs" / "1" / "model.onnx").exists()


def test_a_full_disk_leaves_nothing_behind(colours: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_triton_repository(colours, tmp_path / "models", max_batch=8)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(triton, "write_flushed", full)
    with pytest.raises(StorageError, match="No space left on device"):
        write_triton_repository(colours, tmp_path / "models", max_batch=4)
    with pytest.raises(StorageError):
        write_triton_repository(colours, tmp_path / "new")
    assert {path.name for path in tmp_path.iterdir()} == {"bundle", "models"}
    assert config_of(tmp_path / "models", "mean-colour-fp32").max_batch_size == 8


def test_the_shipped_bundle(bundle: Bundle, tmp_path: Path) -> None:
    manifest = write_triton_repository(bundle, tmp_path / "models")
    config = config_of(tmp_path / "models", manifest.models["fp32"])
    graph = onnx.load(tmp_path / "models" / manifest.models["fp32"] / "1" / "model.onnx").graph
    types = {model_config_pb2.TYPE_UINT8: onnx.TensorProto.UINT8, model_config_pb2.TYPE_FP32: onnx.TensorProto.FLOAT}
    for stated, real in zip((*config.input, *config.output), (*graph.input, *graph.output), strict=True):
        kind = real.type.tensor_type
        assert stated.name == real.name
        assert types[stated.data_type] == kind.elem_type
        assert list(stated.dims) == [side.dim_value for side in kind.shape.dim[1:]]
        assert kind.shape.dim[0].dim_param
