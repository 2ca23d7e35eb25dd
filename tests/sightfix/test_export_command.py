"""`sightfix export` as a newcomer meets it: bundles whitened, lowered, imported; and what it refuses."""

from pathlib import Path

import huggingface_hub.constants
import onnx
import pytest
import torch
from typer.testing import CliRunner, Result

from retrieval.bundle import Precision, open_bundle
from retrieval.errors import SightfixError
from retrieval.index.place_index import PlaceIndex
from sightfix.cli import app
from tests.export.foreign_nets import SmallNet, write_toml
from tests.export.foreign_nets import export as export_net
from tests.places import make_places
from tests.retrieval.engines.colour_bundle import write_colour_bundle
from training.torchvision_ops import define_missing_operators


def export(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["export", *map(str, arguments)])


def refused(*arguments: object) -> str:
    result = export(*arguments)
    assert isinstance(result.exception, SightfixError), result.output
    return str(result.exception)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A CSV of 70 photos."""
    folder = tmp_path_factory.mktemp("photos")
    rows = make_places(folder, 70).rows
    lines = [f"{row.path},{row.position.lat},{row.position.lon}" for row in rows if row.position]
    (folder / "refs.csv").write_text("\n".join(["path,lat,lon", *lines]) + "\n")
    return f"csv:{folder / 'refs.csv'}"


def test_the_shipped_bundle_whitened(photos: str, tmp_path: Path) -> None:
    result = export("default", "--out", tmp_path / "w", "--whiten", 16, "--fit", photos, "--name", "small",
                    "--eval", "line", "--eval-database", photos, "--eval-queries", photos)  # fmt: skip
    assert result.exit_code == 0, result.output
    bundle = open_bundle(tmp_path / "w")
    assert (bundle.name, bundle.descriptor_dim) == ("small", 16)
    assert "16 numbers a descriptor" in result.output
    assert "whitened: 1280 → 16 numbers, fitted on 70 photos of" in result.output
    assert "line, 25 m" in result.output
    assert f"Next: sightfix index PHOTOS --bundle {tmp_path / 'w'}" in result.output


def test_a_precision_and_a_triton_repository(photos: str, tmp_path: Path) -> None:
    result = export("default", "--out", tmp_path / "b", "--precision", "fp16", "--photos", photos, "--accept-loss",
                    "--triton", tmp_path / "triton")  # fmt: skip
    assert result.exit_code == 0, result.output
    bundle = open_bundle(tmp_path / "b")
    assert set(bundle.manifest.graphs) == {"fp32", "fp16"}
    assert bundle.manifest.precisions["fp16"].images == 70
    assert "fp16: worst cosine to fp32 0.99" in result.output
    assert list((tmp_path / "triton").glob("*fp16/config.pbtxt"))


@pytest.mark.parametrize(
    ("precision", "least"), [("fp16", 0.999), pytest.param("int8", 0.99, marks=pytest.mark.nightly)]
)
def test_adapted_to_photos_and_indexes_made_with_the_result(
    photos: str, tmp_path: Path, precision: Precision, least: float
) -> None:
    """A lower precision of an adapted bundle passes its check without being excused from it."""
    out, indexes = tmp_path / "adapted", tmp_path / "indexes"
    result = export("default", "--adapt", photos, "--precision", precision, "--out", out)
    assert result.exit_code == 0, result.output
    bundle = open_bundle(out)
    assert bundle.manifest.adaptation is not None
    assert (bundle.manifest.adaptation.photos, bundle.descriptor_dim) == (70, 512)
    assert bundle.manifest.dense_outputs == open_bundle().manifest.dense_outputs
    report = bundle.manifest.precisions[precision]
    assert report.images == 70
    assert report.min_cosine >= least
    for name in ("one", "other"):
        result = CliRunner().invoke(
            app, ["index", photos, "--bundle", str(out), "--indexes", str(indexes), "--name", name]
        )
        assert result.exit_code == 0, result.output
        assert "adapted to 70 photos" in result.output
        held = PlaceIndex.open(indexes / name).held_bundle()
        assert held is not None
        assert held.fingerprint == bundle.fingerprint


def test_what_cannot_be_adapted(photos: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    both = ("--adapt", photos, "--whiten", 16, "--fit", photos)
    assert "--adapt projects already" in refused("default", "--out", out, *both)
    plain = write_colour_bundle(tmp_path / "plain").folder
    assert "not adaptable" in refused(plain, "--out", out, "--adapt", photos)
    assert not out.exists()


def test_somebody_elses_model(tmp_path: Path) -> None:
    export_net(SmallNet(), tmp_path / "net.onnx")
    result = export(write_toml(tmp_path), "--out", tmp_path / "bundle")
    assert result.exit_code == 0, result.output
    assert open_bundle(tmp_path / "bundle").manifest.parity is not None
    assert "note operators were converted from opset 17 to 20" in result.output


def test_what_belongs_together(photos: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert "--whiten and --fit belong together" in refused("default", "--out", out, "--whiten", 16)
    assert "needs photos to judge it by" in refused("default", "--out", out, "--precision", "int8")
    assert "--precision 'int4' is unknown" in refused("default", "--out", out, "--precision", "int4")
    assert "--camera '1080p' is not WIDTHxHEIGHT" in refused("default", "--out", out, "--camera", "1080p")
    assert "Choose 1 to 1280" in refused("default", "--out", out, "--whiten", 2000, "--fit", photos)
    assert "there are 1 --eval, 0 --eval-database" in refused("default", "--out", out, "--eval", "x")
    assert not out.exists()


def test_too_few_photos_say_how_many_more(photos: str, tmp_path: Path) -> None:
    few = make_places(tmp_path, 9).rows
    lines = [f"{row.path},{row.position.lat},{row.position.lon}" for row in few if row.position]
    (tmp_path / "few.csv").write_text("\n".join(["path,lat,lon", *lines]) + "\n")
    said = refused("default", "--out", tmp_path / "o", "--precision", "int8", "--photos", f"csv:{tmp_path / 'few.csv'}")
    assert "9 photos cannot prove an int8 graph, 64 are needed. Give 55 more photos" in said
    assert not (tmp_path / "o").exists()


def test_not_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    said = refused(tmp_path / "empty", "--out", tmp_path / "o")
    assert "there is no readable manifest.json" in said
    assert "Give the folder of a checkpoint" in said


def test_a_model_of_timm_by_name(tmp_path: Path) -> None:
    result = export("timm:test_vit", "--weights", "none", "--size", "64x96", "--layers", "3:0.5,4:value",
                    "--out", tmp_path / "vit")  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "adapts to a place with blocks.3:0.5, blocks.4:value" in result.output
    bundle = open_bundle(tmp_path / "vit")
    assert bundle.name == "test_vit-64x96-random"
    assert bundle.image_shape == (64, 96, 3)
    shown = CliRunner().invoke(app, ["bundle", "show", str(tmp_path / "vit")])
    assert "blocks.3 (64 channels, weight 0.5), blocks.4:value (64 channels)" in " ".join(shown.output.split())


def test_what_timm_models_refuse(tmp_path: Path) -> None:
    out = ("--out", tmp_path / "out")
    assert "timm has no model 'resnet5o'. Did you mean resnet50" in refused("timm:resnet5o", *out)
    vit = ("timm:test_vit", "--weights", "none", *out)
    assert "sightfix export takes --size 224x320" in refused(*vit, "--size", "222x322")
    assert "--size '0' is no size" in refused(*vit, "--size", "0")
    assert "no layer '9' that gives one map. Choose among blocks.0" in refused(*vit, "--layers", "9")
    assert "the weight '0' of 3 is not a number above 0" in refused(*vit, "--layers", "3:0,4")
    assert "the weights cannot be read" in refused("timm:test_vit", "--weights", tmp_path / "no.safetensors", *out)
    assert "the layers of a bundle were chosen when it was made" in refused("default", "--layers", "3", *out)
    assert "--size and --weights are for models of timm" in refused("default", "--size", "322", *out)
    assert not (tmp_path / "out").exists()


def test_weights_of_a_file_may_have_their_classifier(tmp_path: Path) -> None:
    define_missing_operators()
    import timm

    torch.manual_seed(1)
    weights = timm.create_model("test_resnet").state_dict()
    torch.save(weights, tmp_path / "mine.pth")
    result = export("timm:test_resnet", "--weights", tmp_path / "mine.pth", "--size", 64, "--out", tmp_path / "mine")
    assert result.exit_code == 0, result.output
    bundle = open_bundle(tmp_path / "mine")
    assert bundle.name == "test_resnet-64x64-mine"
    assert bundle.manifest.provenance.weights == "file mine.pth"


def test_tensors_of_somebody_elses_model(tmp_path: Path) -> None:
    file = onnx.load(export_net(SmallNet(), tmp_path / "net.onnx"))
    relu = [node.output[0] for node in file.graph.node if node.op_type == "Relu"][-1]
    result = export(write_toml(tmp_path), "--layers", relu, "--out", tmp_path / "bundle")
    assert result.exit_code == 0, result.output
    assert [output.layer for output in open_bundle(tmp_path / "bundle").manifest.dense_outputs] == [relu]


def test_a_download_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    said = refused("timm:test_vit.r160_in1k", "--out", tmp_path / "out")
    assert "the weights of test_vit.r160_in1k could not be downloaded" in said
    assert "--weights FILE of sightfix export" in said
