"""What `check_bundle` finds in whole and in damaged bundles."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from retrieval.bundle import Bundle
from retrieval.errors import BundleError
from retrieval.images import Preprocessing
from sightfix.inspection.bundles import Check, check_bundle, made_up_images
from tests.retrieval.engines.colour_bundle import write_colour_bundle
from tests.retrieval.other_bundle import change_manifest, flip_byte, record_again


@pytest.fixture
def colours(tmp_path: Path) -> Bundle:
    return write_colour_bundle(tmp_path / "bundle")


def checks(folder: Path) -> list[Check]:
    return list(check_bundle(folder))


def change_graph(folder: Path, name: str, *nodes: onnx.NodeProto) -> None:
    """Put nodes from `descriptors` to `changed` behind a graph, and rename, so that the contract holds."""
    model = onnx.load(folder / name)
    for node in model.graph.node:
        node.output[:] = ["plain" if output == "descriptors" else output for output in node.output]
    model.graph.node.extend(nodes)
    onnx.save(model, folder / name)
    record_again(folder, name)


def test_a_whole_bundle(colours: Bundle) -> None:
    found = checks(colours.folder)
    assert [check.what for check in found] == ["manifest", "model.onnx", "model.fp16.onnx", "fp32 graph", "fp16 graph"]
    assert all(check.error is None for check in found)
    assert found[0].found == f"mean-colour, fingerprint {colours.fingerprint[:12]}"
    assert found[3].found == "runs, 3 numbers, finite, unit length on 4 made-up images"
    assert found[4].found.endswith("; worst cosine to fp32 1.00000")


def test_the_shipped_bundle() -> None:
    assert all(check.error is None for check in check_bundle())


def test_every_damaged_file_is_named_and_no_graph_is_run(colours: Bundle) -> None:
    flip_byte(colours.folder / "model.onnx")
    (colours.folder / "model.fp16.onnx").unlink()
    manifest, *files = checks(colours.folder)
    assert manifest.error is None
    assert [check.what for check in files] == ["model.onnx", "model.fp16.onnx"]
    assert "the file is damaged: its SHA-256 is" in str(files[0].error)
    assert "the file cannot be read (No such file or directory)" in str(files[1].error)


def test_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"no readable manifest.json .*Give the folder of a bundle"):
        checks(tmp_path)


def test_a_graph_that_is_not_unit(colours: Bundle) -> None:
    change_graph(colours.folder, "model.onnx", helper.make_node("Add", ["plain", "plain"], ["descriptors"]))
    fp32 = checks(colours.folder)[3]
    assert fp32.found == "fails"
    assert "descriptors have lengths from 2 to 2, not 1. Export the bundle again." in str(fp32.error)


def test_a_graph_that_gives_no_numbers(colours: Bundle) -> None:
    model = onnx.load(colours.folder / "model.fp16.onnx")
    for node in model.graph.node:
        node.output[:] = ["plain" if output == "descriptors" else output for output in node.output]
    model.graph.initializer.append(numpy_helper.from_array(np.float32(0), "zero"))
    model.graph.node.append(helper.make_node("Div", ["plain", "zero"], ["descriptors"]))
    onnx.save(model, colours.folder / "model.fp16.onnx")
    record_again(colours.folder, "model.fp16.onnx")
    fp32, fp16 = checks(colours.folder)[3:]
    assert fp32.error is None
    assert "not finite" in str(fp16.error)


def test_a_graph_without_the_contract(colours: Bundle) -> None:
    model = onnx.load(colours.folder / "model.fp16.onnx")
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("length", TensorProto.FLOAT, ["N", 1]))
    onnx.save(model, colours.folder / "model.fp16.onnx")
    record_again(colours.folder, "model.fp16.onnx")
    assert "is not the bundle's contract" in str(checks(colours.folder)[4].error)


def test_a_precision_that_is_another_model(colours: Bundle) -> None:
    """Unit length, and opposite: nothing but the comparison with fp32 can tell."""
    change_graph(colours.folder, "model.fp16.onnx", helper.make_node("Neg", ["plain"], ["descriptors"]))
    assert "describes otherwise than the fp32 graph: worst cosine -1.0000" in str(checks(colours.folder)[4].error)
    accepted = {"images": 64, "min_cosine": -1.0, "mean_cosine": -1.0, "threshold": 0.9999, "accepted_loss": True}
    change_manifest(colours.folder, {"precisions": {"fp16": accepted}})
    assert checks(colours.folder)[4].error is None


def test_made_up_images_differ_and_stay_the_same() -> None:
    preprocessing = Preprocessing(height=32, width=48)
    images = made_up_images(preprocessing)
    assert images.shape == (4, 32, 48, 3)
    assert images.dtype == np.uint8
    assert len({image.tobytes() for image in images}) == 4
    np.testing.assert_array_equal(images, made_up_images(preprocessing))
