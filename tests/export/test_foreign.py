"""Foreign models: whatever convention a file follows, the bundle describes as the file does, or says why not."""

import itertools
import os
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from PIL import Image

from export.exporting import write_export
from export.foreign import read_foreign_model
from export.foreign.settings import ForeignModelError, read_settings, valid_keys
from retrieval.bundle.adapted_graph import dense_describer
from retrieval.bundle.exportable import ExportableModel, noise, run_on_cpu
from retrieval.describer import Describer
from retrieval.errors import ParameterError
from retrieval.images import Preprocessing, fit_image
from tests.export.foreign_nets import (
    DIM,
    HEIGHT,
    IMAGENET,
    PROVENANCE,
    WIDTH,
    Bytes,
    Last,
    SmallNet,
    export,
    mean_graph,
    write_toml,
)
from tests.places import pattern
from tests.retrieval.refusal import refused
from training.torchvision_ops import define_missing_operators

SIDES = ("batch", 3, HEIGHT, WIDTH)


@pytest.fixture(autouse=True)
def _same_weights() -> None:
    torch.manual_seed(0)


def photos(count: int) -> np.ndarray:
    """(count, H, W, 3) uint8 that the import itself has not seen."""
    return np.stack([np.asarray(pattern(seed, (WIDTH, HEIGHT))) for seed in range(count)])


def imported(toml: Path) -> ExportableModel:
    return read_foreign_model(toml).model


def check(source: ExportableModel, *, dim: int = DIM) -> None:
    """Contract and equality with the untouched file."""
    (images,), (descriptors,) = source.graph.graph.input, source.graph.graph.output
    assert [side.dim_param or side.dim_value for side in images.type.tensor_type.shape.dim] == ["N", HEIGHT, WIDTH, 3]
    assert images.type.tensor_type.elem_type == TensorProto.UINT8
    assert [side.dim_param or side.dim_value for side in descriptors.type.tensor_type.shape.dim] == ["N", dim]
    assert (images.name, descriptors.name, source.descriptor_dim) == ("images", "descriptors", dim)
    describe = run_on_cpu(source.graph)
    for batch in (1, 2, 7):
        taken = photos(batch)
        ours, theirs = describe(taken), source.original(taken)
        assert ours.dtype == theirs.dtype == np.float32
        assert ours.shape == theirs.shape == (batch, dim)
        np.testing.assert_allclose(np.linalg.norm(ours, axis=1), 1, atol=1e-5)
        assert float((ours * theirs).sum(axis=1).min()) >= 0.99999


def test_an_imagenet_net_describes_as_pytorch(tmp_path: Path) -> None:
    """Not only as the file: against the net itself, by hand."""
    net = SmallNet()
    export(net, tmp_path / "net.onnx")
    model = read_foreign_model(write_toml(tmp_path))
    check(model.model)
    assert model.notes == ("operators were converted from opset 17 to 20",)
    images = photos(5)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        pixels = (torch.from_numpy(images) / 255 - mean) / std
        theirs = torch.nn.functional.normalize(net(pixels.permute(0, 3, 1, 2)), dim=1).numpy()
    ours = run_on_cpu(model.model.graph)(images)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert {(entry.domain, entry.version) for entry in model.model.graph.opset_import} == {("", 20)}


def test_what_the_toml_states_reaches_the_bundle(tmp_path: Path) -> None:
    export(SmallNet(), tmp_path / "net.onnx")
    toml = write_toml(tmp_path, more='[resize]\nfit = "crop"\nfilter = "bilinear"')
    toml.write_text(toml.read_text() + 'licence = "CC BY 4.0"\n')
    bundle = write_export(imported(toml), tmp_path / "bundle")
    manifest = bundle.manifest
    assert manifest.name == "small"
    assert manifest.licence == "CC BY 4.0"
    assert manifest.provenance.objective == "made up"
    assert manifest.provenance.weights_licence == "MIT"
    assert manifest.preprocessing == Preprocessing(height=HEIGHT, width=WIDTH, fit="crop", filter="bilinear")
    assert manifest.parity is not None
    assert manifest.parity.reference.startswith("net.onnx, untouched, in ONNX Runtime ")
    photo = np.asarray(pattern(3, (200, 100)))
    fitted = fit_image(photo, manifest.preprocessing)
    assert Describer(bundle, threads=1).describe([fitted]).shape == (1, DIM)
    assert Image.fromarray(fitted).size == (WIDTH, HEIGHT)


def test_the_licence_is_that_of_the_weights_unless_stated(tmp_path: Path) -> None:
    export(SmallNet(), tmp_path / "net.onnx")
    assert imported(write_toml(tmp_path)).licence == "MIT"


def test_bytes_with_channels_last(tmp_path: Path) -> None:
    export(Bytes(), tmp_path / "net.onnx", dtype=torch.uint8, last=True)
    model = read_foreign_model(write_toml(tmp_path, 'layout = "nhwc"\ndtype = "uint8"'))
    check(model.model)
    casts = [node.op_type for node in model.model.graph.graph.node if "images" in node.input]
    assert casts == ["Cast"], "TensorRT lets nothing but a Cast read a uint8 input"


def test_floats_with_channels_last(tmp_path: Path) -> None:
    export(Last(), tmp_path / "net.onnx", last=True)
    check(
        imported(
            write_toml(tmp_path, 'layout = "nhwc"\nscale = 1\nmean = [127.5, 127.5, 127.5]\nstd = [128, 128, 128]')
        )
    )


def test_caffe_channels_and_means(tmp_path: Path) -> None:
    net = SmallNet()
    export(net, tmp_path / "net.onnx")
    caffe = 'channels = "bgr"\nscale = 1\nmean = [103.939, 116.779, 123.68]\nstd = [1, 1, 1]'
    source = imported(write_toml(tmp_path, caffe))
    check(source)
    red = np.zeros((1, HEIGHT, WIDTH, 3), np.uint8)
    red[..., 0] = 255
    planes = torch.tensor([0 - 103.939, 0 - 116.779, 255 - 123.68]).reshape(1, 3, 1, 1).expand(1, 3, HEIGHT, WIDTH)
    with torch.no_grad():
        theirs = torch.nn.functional.normalize(net(planes), dim=1).numpy()
    np.testing.assert_allclose(run_on_cpu(source.graph)(red), theirs, atol=1e-5)


@pytest.mark.parametrize("names", [("images", "descriptors"), ("descriptors", "images")])
def test_a_foreign_graph_may_use_our_names(tmp_path: Path, names: tuple[str, str]) -> None:
    export(SmallNet(), tmp_path / "net.onnx", names=names)
    check(imported(write_toml(tmp_path)))


def test_a_stated_batch_is_freed(tmp_path: Path) -> None:
    export(SmallNet(), tmp_path / "net.onnx", dynamic=False, batch=4)
    model = read_foreign_model(write_toml(tmp_path))
    check(model.model)
    assert "its batch was stated as 4, and is free now" in model.notes


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_batch_in_a_reshape_is_freed(tmp_path: Path, dynamic: bool) -> None:
    """Whether the file admits it or not."""
    export(SmallNet(baked=True), tmp_path / "net.onnx", dynamic=dynamic)
    model = read_foreign_model(write_toml(tmp_path))
    check(model.model)
    assert "it was exported for 1 image at a time, and was rewritten for any" in model.notes


def test_a_transformer_exported_for_one_image_is_freed(tmp_path: Path) -> None:
    define_missing_operators()
    import timm

    vit = timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=0, img_size=(HEIGHT, WIDTH), depth=2)
    export(vit, tmp_path / "net.onnx", dynamic=False)
    check(imported(write_toml(tmp_path)), dim=192)


def test_a_batch_that_cannot_be_freed_is_refused(tmp_path: Path) -> None:
    """The mean over all images of a batch, as a wrong squeeze or a batch norm in training mode makes it."""
    nodes = (
        helper.make_node("ReduceMean", ["image"], ["mean"], axes=[0], keepdims=1),
        helper.make_node("Sub", ["image", "mean"], ["centred"]),
        helper.make_node("Add", ["centred", "image"], ["sum"]),
        helper.make_node("ReduceMean", ["sum"], ["vector"], axes=[2, 3], keepdims=0),
    )
    onnx.save(mean_graph(*nodes, sides=SIDES, out=("batch", 3)), tmp_path / "net.onnx")
    with pytest.raises(ForeignModelError) as caught:
        imported(write_toml(tmp_path, "scale = 255\nmean = [0, 0, 0]\nstd = [1, 1, 1]"))
    assert caught.value.code == "foreign_batch"
    assert "it describes 1 image at a time only" in str(caught.value)
    assert "Export it with a dynamic batch" in str(caught.value)


def test_fp16_weights_are_computed_with_in_fp32(tmp_path: Path) -> None:
    export(SmallNet(unit=True).half(), tmp_path / "net.onnx", dtype=torch.float16)
    model = read_foreign_model(write_toml(tmp_path, f'dtype = "float16"\n{IMAGENET}'))
    check(model.model)
    assert "its weights are fp16; the bundle's graph computes in fp32 with their values" in model.notes
    assert {tensor.data_type for tensor in model.model.graph.graph.initializer} <= {
        TensorProto.FLOAT,
        TensorProto.INT64,
    }


def test_fp16_stays_where_fp32_differs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def differ(model: onnx.ModelProto) -> onnx.ModelProto:
        raise ValueError("other descriptors")

    monkeypatch.setattr("export.foreign.importing.widen", differ)
    export(SmallNet(unit=True).half(), tmp_path / "net.onnx", dtype=torch.float16)
    model = read_foreign_model(write_toml(tmp_path))
    check(model.model)
    assert "it computes in fp16, and stays so: in fp32 it gives other descriptors" in model.notes


def test_one_of_two_outputs(tmp_path: Path) -> None:
    export(SmallNet(both=True), tmp_path / "net.onnx", names=("image", "tokens", "vector"))
    check(imported(write_toml(tmp_path, output='name = "vector"')))
    with refused(
        ForeignModelError,
        f"{tmp_path / 'net.toml'}: the graph has 2 outputs: tokens float [batch, 12, 12, 16]; "
        "vector float [batch, 12]. Say in [output] name which is the descriptor.",
        "foreign_contract",
    ):
        imported(write_toml(tmp_path))
    with pytest.raises(ForeignModelError, match=r"no output 'pooled'; it has tokens float .*Correct"):
        imported(write_toml(tmp_path, output='name = "pooled"'))
    with pytest.raises(ForeignModelError, match=r"output tokens .* is not one vector .*with its pooling"):
        imported(write_toml(tmp_path, output='name = "tokens"'))


def test_what_only_the_other_output_needs_is_left_out(tmp_path: Path) -> None:
    export(SmallNet(both=True), tmp_path / "net.onnx", names=("image", "tokens", "vector"))
    model = onnx.load(tmp_path / "net.onnx")
    model.graph.node.append(helper.make_node("Exp", ["tokens"], ["unused"]))
    model.graph.output.append(helper.make_tensor_value_info("unused", TensorProto.FLOAT, None))
    onnx.save(model, tmp_path / "net.onnx")
    source = imported(write_toml(tmp_path, output='name = "vector"'))
    assert "Exp" not in {node.op_type for node in source.graph.graph.node}


def test_pooled_but_not_flattened(tmp_path: Path) -> None:
    export(SmallNet(flat=False), tmp_path / "net.onnx")
    check(imported(write_toml(tmp_path)))


def test_a_norm_may_be_left_out_where_there_is_one(tmp_path: Path) -> None:
    export(SmallNet(unit=True), tmp_path / "net.onnx")
    check(imported(write_toml(tmp_path, output="normalise = false")))
    export(SmallNet(), tmp_path / "net.onnx")
    with pytest.raises(ForeignModelError, match=r"normalise is false, and descriptors have lengths .*normalise = true"):
        imported(write_toml(tmp_path, output="normalise = false"))


def test_weights_beside_the_model_are_loaded(tmp_path: Path) -> None:
    export(SmallNet(), tmp_path / "net.onnx")
    model = onnx.load(tmp_path / "net.onnx")
    onnx.save(model, tmp_path / "net.onnx", save_as_external_data=True, location="net.onnx.data", size_threshold=0)
    source = imported(write_toml(tmp_path))
    check(source)
    assert all(tensor.data_location == TensorProto.DEFAULT for tensor in source.graph.graph.initializer)
    weights = tmp_path / "net.onnx.data"
    with weights.open("r+b") as file:
        file.truncate(100)
    with pytest.raises(ForeignModelError, match=r"net.onnx.data: the file of weights has 100 bytes.*cut off"):
        imported(write_toml(tmp_path))
    weights.unlink()
    with pytest.raises(ForeignModelError, match=r"its weights lie in net.onnx.data, which is missing. Copy"):
        imported(write_toml(tmp_path))


def test_nothing_of_the_exporters_machine_stays(tmp_path: Path) -> None:
    export(SmallNet(), tmp_path / "net.onnx")
    model = onnx.load(tmp_path / "net.onnx")
    model.doc_string = model.graph.node[0].doc_string = "/home/somebody/net.py"
    model.metadata_props.append(onnx.StringStringEntryProto(key="path", value="/home/somebody"))
    onnx.save(model, tmp_path / "net.onnx")
    assert b"somebody" not in imported(write_toml(tmp_path)).graph.SerializeToString()


def test_very_old_operators_are_converted(tmp_path: Path) -> None:
    export(SmallNet(), tmp_path / "net.onnx", opset=11)
    model = read_foreign_model(write_toml(tmp_path))
    check(model.model)
    assert model.notes == ("operators were converted from opset 11 to 20",)


def test_operators_that_cannot_be_converted_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no adapter for Mystery")

    monkeypatch.setattr("export.foreign.importing.convert_opset", fail)
    export(SmallNet(), tmp_path / "net.onnx", opset=13)
    model = read_foreign_model(write_toml(tmp_path))
    check(model.model)
    assert model.notes == (
        "the operators stay those of opset 13: converting them to 20 fails (no adapter for Mystery)",
    )
    assert {(entry.domain, entry.version) for entry in model.model.graph.opset_import} == {("", 13)}


def test_a_net_that_sees_no_difference_is_noted(tmp_path: Path) -> None:
    """0 to 1 fed to a net that wants 0 to 255, for one."""
    export(SmallNet(), tmp_path / "net.onnx")
    notes = read_foreign_model(write_toml(tmp_path, "scale = 1e6\nmean = [0, 0, 0]\nstd = [1, 1, 1]")).notes
    assert any(note.startswith("very different test images get nearly the same descriptor") for note in notes)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "this is not an ONNX model, or it is cut off"),
        (b"just a text file, not a model\n" * 9, "this is not an ONNX model, or it is cut off"),
        (b"version https://git-lfs.github.com/spec/v1\n", "this is a Git LFS pointer, not the file itself"),
        (b"PK\x03\x04rest", "this is a zip archive, such as PyTorch writes, not an ONNX model"),
        (b"<!doctype html>", "this is a web page, not an ONNX model"),
    ],
)
def test_what_is_no_onnx_file(tmp_path: Path, content: bytes, what: str) -> None:
    (tmp_path / "net.onnx").write_bytes(content)
    with pytest.raises(ForeignModelError) as caught:
        imported(write_toml(tmp_path))
    assert str(caught.value).startswith(f"{tmp_path / 'net.onnx'}: {what}")
    assert caught.value.remedy
    assert caught.value.code == "foreign_file"


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file(tmp_path: Path, share: float) -> None:
    whole = export(SmallNet(), tmp_path / "net.onnx").read_bytes()
    (tmp_path / "net.onnx").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ForeignModelError) as caught:
        imported(write_toml(tmp_path))
    assert "cut off" in str(caught.value)


def test_a_missing_file_and_one_too_large(tmp_path: Path) -> None:
    with pytest.raises(ForeignModelError, match=r"net.onnx: the model cannot be read .*the key onnx in net.toml"):
        imported(write_toml(tmp_path))
    with (tmp_path / "net.onnx").open("wb") as file:
        os.truncate(file.fileno(), 2**31)  # takes no room on the disk
    with pytest.raises(ForeignModelError, match=r"more than 2 GB of weights.*fp16"):
        imported(write_toml(tmp_path))


def test_sizes_types_and_layouts_that_contradict_the_toml(tmp_path: Path) -> None:
    export(SmallNet(), tmp_path / "net.onnx")
    cases = {
        f'layout = "nhwc"\n{IMAGENET}': "[input] says 48×64 nhwc. Set layout to 'nchw'.",
        f'dtype = "float16"\n{IMAGENET}': "and [input] dtype says float16. Set dtype to 'float32'.",
        f'name = "picture"\n{IMAGENET}': "no input 'picture'; it has image float [batch, 3, 48, 64]. Correct",
        "scale = 255": "[input] lacks mean and std, and the net takes float32. Say what it was trained with",
    }
    for lines, text in cases.items():
        with pytest.raises(ForeignModelError) as caught:
            imported(write_toml(tmp_path, lines))
        assert text in str(caught.value), lines
        assert caught.value.code == "foreign_contract"
    toml = write_toml(tmp_path)
    toml.write_text(toml.read_text().replace("height = 48", "height = 96"))
    with refused(
        ForeignModelError,
        f"{toml}: input 'image' is float [batch, 3, 48, 64], and [input] says 96×64 nchw. "
        "Correct height, width or layout there.",
        "foreign_contract",
    ):
        imported(toml)


def test_a_normalisation_of_bytes_is_refused(tmp_path: Path) -> None:
    export(Bytes(), tmp_path / "net.onnx", dtype=torch.uint8, last=True)
    with pytest.raises(ForeignModelError, match=r"takes uint8, and \[input\] sets scale. Remove scale"):
        imported(write_toml(tmp_path, 'layout = "nhwc"\nscale = 255'))


def test_a_size_that_the_net_cannot_take(tmp_path: Path) -> None:
    """The file declares any size, and multiplies by a constant of one."""
    size = helper.make_tensor("size", TensorProto.FLOAT, [1, 1, 32, 1], [1.0] * 32)
    nodes = (
        helper.make_node("Constant", [], ["size"], value=size),
        helper.make_node("Mul", ["image", "size"], ["product"]),
        helper.make_node("ReduceMean", ["product"], ["vector"], axes=[2, 3], keepdims=0),
    )
    onnx.save(mean_graph(*nodes, sides=("b", 3, "h", "w"), out=("b", 3)), tmp_path / "net.onnx")
    with pytest.raises(ForeignModelError, match=r"does not run on images of the stated size.*Check height"):
        imported(write_toml(tmp_path))


def test_two_inputs(tmp_path: Path) -> None:
    model = mean_graph(
        helper.make_node("Mul", ["image", "mask"], ["masked"]),
        helper.make_node("ReduceMean", ["masked"], ["vector"], axes=[2, 3], keepdims=0),
        sides=SIDES,
        out=("batch", 3),
    )
    model.graph.input.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, [1]))
    onnx.save(model, tmp_path / "net.onnx")
    with pytest.raises(ForeignModelError, match=r"2 inputs: image float \[batch, 3, 48, 64\]; mask float \[1\]. Say"):
        imported(write_toml(tmp_path))
    with pytest.raises(ForeignModelError, match=r"inputs besides 'image'.*as constants"):
        imported(write_toml(tmp_path, f'name = "image"\n{IMAGENET}'))


def test_operators_that_the_runtime_lacks(tmp_path: Path) -> None:
    node = helper.make_node("Aggregate", ["image"], ["vector"], domain="my.ops")
    model = mean_graph(node, sides=SIDES, out=("batch", 3))
    model.opset_import.append(helper.make_opsetid("my.ops", 1))
    onnx.save(model, tmp_path / "net.onnx")
    with refused(
        ForeignModelError,
        f"{tmp_path / 'net.onnx'}: it uses operators that ONNX Runtime does not have: my.ops.Aggregate. "
        "Export the model with standard ONNX operators only.",
        "foreign_operator",
    ):
        imported(write_toml(tmp_path))


def test_shapes_that_depend_on_pixels(tmp_path: Path) -> None:
    """As many numbers a descriptor as there are bright pixels."""
    nodes = (
        helper.make_node("NonZero", ["image"], ["places"]),
        helper.make_node("Cast", ["places"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Slice", ["floats", "zero", "one", "zero"], ["vector"]),
    )
    model = mean_graph(*nodes, sides=SIDES, out=("rows", "values"))
    model.graph.initializer.extend(
        helper.make_tensor(name, TensorProto.INT64, [1], [v]) for name, v in (("zero", 0), ("one", 1))
    )
    onnx.save(model, tmp_path / "net.onnx")
    with pytest.raises(ForeignModelError, match=r"the shape of output 'vector' depends on what an image shows"):
        imported(write_toml(tmp_path, "scale = 255\nmean = [0, 0, 0]\nstd = [1, 1, 1]"))
    model.graph.node[2].CopyFrom(helper.make_node("Identity", ["floats"], ["vector"]))
    onnx.save(model, tmp_path / "net.onnx")
    with pytest.raises(ForeignModelError, match=r"not a row for each image"):
        imported(write_toml(tmp_path, "scale = 255\nmean = [0, 0, 0]\nstd = [1, 1, 1]"))


def test_descriptors_that_are_no_numbers(tmp_path: Path) -> None:
    nodes = (
        helper.make_node("Log", ["image"], ["log"]),
        helper.make_node("ReduceMean", ["log"], ["vector"], axes=[2, 3], keepdims=0),
    )
    onnx.save(mean_graph(*nodes, sides=SIDES, out=("batch", 3)), tmp_path / "net.onnx")
    with pytest.raises(ForeignModelError, match=r"not finite on 8 of 8 test images. Check scale, mean and std"):
        imported(write_toml(tmp_path))


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [
        ("height = 48", "hight = 48", "unknown key input.hight. Did you mean height? The keys of [input] are name,"),
        (
            "[output]",
            "colour = 1\n[output]",
            "unknown key input.colour. The keys of [input] are name, layout, channels",
        ),
        ('name = "small"', 'nam = "small"', "unknown key nam. Did you mean name? The keys are name, onnx, [input],"),
        ('name = "small"', "", "the key name is missing. Add it; the keys are name, onnx, [input], [output]"),
        ("height = 48", "", "the key input.height is missing. Add it; the keys of [input] are name, layout"),
        ("height = 48", 'height = "48"', "input.height is '48': input should be a valid integer. Correct that key."),
        ("scale = 255", "scale = 0", "input.scale is 0: input should be greater than 0."),
        ("0.485, ", "", "input.mean is [0.456, 0.406]: list should have at least 3 items"),
        ("[0.229", "[0.0", "input.std is [0.0, 0.224, 0.225]: it must be above 0."),
        (PROVENANCE, "", "the table [provenance] is missing. Add it; its keys are backbone, aggregation, objective"),
        ("[input]", "[inputs]", "unknown key inputs. Did you mean [input]? The keys are name, onnx, [input], [output]"),
        ("[input]", "[input", "this is not valid TOML: "),
    ],
)
def test_faults_of_the_toml(tmp_path: Path, before: str, after: str, text: str) -> None:
    toml = write_toml(tmp_path)
    content = toml.read_text()
    assert before in content
    toml.write_text(content.replace(before, after, 1))
    with pytest.raises(ForeignModelError) as caught:
        imported(toml)
    assert str(caught.value).startswith(f"{toml}: {text}")
    assert caught.value.code == "foreign_settings"


def test_the_model_given_for_the_toml(tmp_path: Path) -> None:
    export(SmallNet(), tmp_path / "net.onnx")
    with pytest.raises(ForeignModelError, match=r"net.onnx: this is not UTF-8 text. Give the TOML .*, not the model"):
        imported(tmp_path / "net.onnx")
    with pytest.raises(ForeignModelError, match=r"none.toml: the file cannot be read"):
        imported(tmp_path / "none.toml")


def test_the_original_describes_each_image_alone(tmp_path: Path) -> None:
    export(SmallNet(), tmp_path / "net.onnx", dynamic=False, batch=4)
    truth = imported(write_toml(tmp_path)).original
    images = noise(HEIGHT, WIDTH)[:6]  # 4 do not divide it
    np.testing.assert_allclose(truth(images), np.concatenate([truth(image[None]) for image in images]), atol=1e-6)


def test_the_example_of_the_documentation(tmp_path: Path) -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "import-a-model.md"
    lines = page.read_text().splitlines()
    begin = lines.index('    name = "megaloc-322"')
    example = itertools.takewhile(lambda line: not line or line.startswith("    "), lines[begin:])
    (tmp_path / "mega.toml").write_text("\n".join(line.removeprefix("    ") for line in example))
    settings = read_settings(tmp_path / "mega.toml")
    assert settings.preprocessing() == Preprocessing(height=322, width=322, filter="bilinear")
    assert settings.bundle_provenance().backbone == "DINOv2 ViT-B/14"
    for table in (None, "input", "output", "resize", "provenance"):
        for key in valid_keys(table):
            assert key.strip("[]") in page.read_text(), f"{key} is not explained"


def test_tensors_to_adapt_with(tmp_path: Path) -> None:
    """The body's last ReLU of the net, as PyTorch's older exporter names it."""
    file = onnx.load(export(SmallNet(), tmp_path / "net.onnx"))
    relu = [node.output[0] for node in file.graph.node if node.op_type == "Relu"][-1]
    toml = write_toml(tmp_path)
    model = read_foreign_model(toml, [f" {relu}"]).model
    (dense,) = model.dense_outputs
    assert (dense.layer, dense.channels) == (relu, DIM)
    images = noise(HEIGHT, WIDTH)[:3]
    (values,) = dense_describer(model.graph, [dense])(images)
    means = values.mean((2, 3))
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    assert (means * model.original(images)).sum(axis=1).min() > 0.9999

    weighted = read_foreign_model(toml, [f"{relu}:0.25"]).model
    assert weighted.dense_outputs == (dense.model_copy(update={"weight": 0.25}),)
    with pytest.raises(ParameterError, match=rf"the weight '0' of {re.escape(relu)} is not a number above 0"):
        read_foreign_model(toml, [f"{relu}:0"])
    with pytest.raises(ForeignModelError, match="'relu9' cannot be adapted with: there is no such tensor") as caught:
        read_foreign_model(toml, ["relu9"])
    assert relu in str(caught.value)
    with pytest.raises(ForeignModelError, match=r"it is float32 \[2, 12\] of two images, not float32 \[2, C, h, w\]"):
        read_foreign_model(toml, ["vector"])
