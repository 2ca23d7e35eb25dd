"""Two bundles side by side, with descriptors that can be worked out on paper."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper
from PIL import Image

from retrieval.bundle import Bundle, open_bundle
from retrieval.errors import ImageError, ParameterError
from sightfix.inspection.bundles import compare_bundles, manifest_fields, measure_agreement
from tests.retrieval.engines.colour_bundle import write_colour_bundle
from tests.retrieval.other_bundle import change_manifest, copy_bundle, record_again, write_other_bundle
from tests.retrieval.refusal import refused


@pytest.fixture
def colours(tmp_path: Path) -> Bundle:
    return write_colour_bundle(tmp_path / "bundle")


def photo(path: Path, *colours: tuple[int, int, int]) -> Path:
    """Stripes of equal width, one below another."""
    Image.fromarray(np.repeat(np.array(colours, np.uint8)[:, None], 32, axis=1)).resize((32, 32), 0).save(path)
    return path


def swap_channels(bundle: Bundle, folder: Path) -> Bundle:
    """The same net, which calls green what is red."""
    copy_bundle(bundle, folder)
    model = onnx.load(folder / "model.onnx")
    model.graph.initializer.append(helper.make_tensor("order", onnx.TensorProto.INT64, [3], [1, 0, 2]))
    for node in model.graph.node:
        node.output[:] = ["plain" if output == "descriptors" else output for output in node.output]
    model.graph.node.append(helper.make_node("Gather", ["plain", "order"], ["descriptors"], axis=1))
    onnx.save(model, folder / "model.onnx")
    record_again(folder, "model.onnx")
    return open_bundle(folder)


def test_a_copy_is_comparable_and_states_the_same(colours: Bundle, tmp_path: Path) -> None:
    other = open_bundle(copy_bundle(colours, tmp_path / "copy"))
    comparison = compare_bundles(colours, other)
    assert comparison.comparable
    assert comparison.differences == ()
    assert comparison.agreement is None
    assert (comparison.second.name, comparison.second.folder) == ("mean-colour", str(tmp_path / "copy"))


def test_what_differs_is_named(colours: Bundle, tmp_path: Path) -> None:
    other = write_other_bundle(colours, tmp_path / "other")
    comparison = compare_bundles(colours, other)
    assert not comparison.comparable
    found = {difference.field: (difference.first, difference.second) for difference in comparison.differences}
    assert found == {
        "name": ("mean-colour", "other"),
        "preprocessing.fit": ("stretch", "crop"),
        "fingerprint": (colours.fingerprint, other.fingerprint),
    }


def test_what_only_one_states(colours: Bundle, tmp_path: Path) -> None:
    copy = copy_bundle(colours, tmp_path / "copy")
    report = {"images": 64, "min_cosine": 0.99995, "mean_cosine": 0.99999, "threshold": 0.9999}
    change_manifest(copy, {"precisions": {"fp16": report}})
    comparison = compare_bundles(colours, open_bundle(copy))
    assert comparison.comparable, "what is stated does not change descriptors"
    found = {difference.field: (difference.first, difference.second) for difference in comparison.differences}
    assert found["precisions.fp16.min_cosine"] == (None, 0.99995)
    back = compare_bundles(open_bundle(copy), colours)
    assert {d.field: (d.second, d.first) for d in back.differences} == found


def test_a_file_and_its_hash_are_one_difference(colours: Bundle, tmp_path: Path) -> None:
    fields = [
        difference.field for difference in compare_bundles(colours, swap_channels(colours, tmp_path / "s")).differences
    ]
    assert fields == ["files.model.onnx", "fingerprint"]


def test_fields_by_their_dotted_names() -> None:
    record = {"sha256": "0" * 64, "size": 1}
    content = {"a": 1, "b": {"c": [2, 3], "d": None, "e": {"f": "g"}}, "files": {"model.onnx": record}, "empty": {}}
    assert dict(manifest_fields(content)) == {"a": 1, "b.c": [2, 3], "b.e.f": "g", "files.model.onnx": record}


def test_agreement_on_paper(colours: Bundle, tmp_path: Path) -> None:
    """Grey is the same with red and green swapped, red is orthogonal to what it was."""
    other = swap_channels(colours, tmp_path / "swapped")
    photos = [photo(tmp_path / "grey.png", (90, 90, 90)), photo(tmp_path / "red.png", (90, 0, 0))]
    seen: list[int] = []
    agreement = measure_agreement(colours, other, photos, on_progress=seen.append)
    assert agreement.photos == sum(seen) == 2
    assert agreement.mean_cosine == pytest.approx(0.5, abs=1e-6)
    assert agreement.worst_cosine == pytest.approx(0.0, abs=1e-6)
    assert agreement.worst_photo == str(tmp_path / "red.png")


def test_each_bundle_decodes_its_own_way(colours: Bundle, tmp_path: Path) -> None:
    """20 × 16 cut out of 32 × 32 leaves less of the outer stripes than all of it pressed into 20 × 16."""
    other = write_other_bundle(colours, tmp_path / "other")
    stripes = photo(tmp_path / "stripes.png", (90, 0, 0), (0, 90, 0), (0, 90, 0), (90, 0, 0))
    assert measure_agreement(colours, colours, [stripes]).worst_cosine == pytest.approx(1.0, abs=1e-6)
    assert measure_agreement(colours, other, [stripes]).worst_cosine < 0.99


def test_what_cannot_be_compared(colours: Bundle, bundle: Bundle, tmp_path: Path) -> None:
    text = (
        "descriptors have 3 and 1280 numbers: there is no cosine between. "
        "Compare bundles of the same descriptor length, or compare their recall: sightfix evaluate."
    )
    with refused(ParameterError, text, "validation_error"):
        measure_agreement(colours, bundle, [tmp_path / "none.png"])
    with pytest.raises(ParameterError, match="no photos"):
        measure_agreement(colours, colours, [])
    with pytest.raises(ImageError, match=r"none.png"):
        measure_agreement(colours, colours, [tmp_path / "none.png"])
