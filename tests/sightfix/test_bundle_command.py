"""`sightfix bundle` as a newcomer meets it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from retrieval.bundle import Bundle, BundleManifest, open_bundle
from retrieval.errors import BundleError
from sightfix.cli import app
from tests.places import pattern
from tests.retrieval.engines.colour_bundle import write_colour_bundle
from tests.retrieval.other_bundle import change_manifest, flip_byte, write_other_bundle


@pytest.fixture
def colours(tmp_path: Path) -> Bundle:
    return write_colour_bundle(tmp_path / "bundle")


def sightfix(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["bundle", *arguments])


def test_it_says_what_it_can_do() -> None:
    for arguments in ((), ("--help",)):
        shown = sightfix(*arguments).stdout
        assert all(command in shown for command in ("show", "verify", "diff"))


def test_show_the_shipped_bundle() -> None:
    shown = sightfix("show").stdout
    for text in (
        "efficientnet-lite0-gem-1280  a bundle: a model that turns a photo into a descriptor",
        "1280 numbers, float32, unit length",
        "256 × 256 pixels RGB; photos of other sizes are stretched to it, bicubic, upright by their EXIF",
        "none: never trained for places",
        "(Apache-2.0)",
        "fp32       model.onnx  6.8  it is fp32; weights are stored as fp16",
        open_bundle().fingerprint,
        "Next: sightfix index PHOTOS\n",
    ):
        assert text in shown, text
    assert shown == sightfix("show", "default").stdout


def test_show_another(colours: Bundle) -> None:
    shown = sightfix("show", str(colours.folder)).stdout
    assert "fp16       model.fp16.onnx" in shown
    assert "not stated" in shown
    assert f"Next: sightfix index PHOTOS --bundle {colours.folder}\n" in shown


def test_show_whitening_precisions_recall_camera_and_plans(colours: Bundle) -> None:
    change = {"evaluation_set": "campus [night]", "radius_m": 25.0, "queries": 90, "chance": 0.08}
    change |= {"before": 0.491, "after": 0.482, "change": -0.009, "low": -0.02, "high": 0.001}
    report = {"images": 128, "min_cosine": 0.9995, "mean_cosine": 0.9999, "threshold": 0.9999, "accepted_loss": True}
    whitening = {"from_dim": 9, "dim": 3, "power": 0.5, "fitted_on": "campus", "photos": 700, "explained": 0.87}
    change_manifest(
        colours.folder,
        {
            "precisions": {"fp16": {**report, "kept_in_fp32": ["a", "b"], "recall": [change]}},
            "whitening": whitening,
            "camera_model_input": {"height": 16, "width": 16},
            "provenance/recalls": {"validation R@1 25 m": 0.5},
        },
    )
    (colours.folder / "engines" / "sm90-trt10.13-fp16").mkdir(parents=True)
    shown = sightfix("show", str(colours.folder)).stdout
    for text in (
        "cosine 0.99950 at worst, 0.99990 on average, on 128 photos; at least 0.9999 is wanted: "
        "failed, accepted when it was made; 2 layers stay fp32",
        "fp16: recall@1 on campus [night] within 25 m 49.1 → 48.2 % (-0.9, 95 % interval -2.0 to +0.1; 90 queries, "
        "chance 8.0 %)",
        "from 9 to 3 numbers (power 0.5), fitted on 700 photos of campus; 87 % of variance kept",
        "whole frames of a camera; the graph resizes them to 16 × 16 pixels",
        "50.0 %, while it was trained",
        "sm90-trt10.13-fp16",
    ):
        assert text in shown, text


def test_a_field_of_a_later_version_is_shown_as_it_stands(colours: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    class LaterManifest(BundleManifest):
        seasons_seen: tuple[str, ...] = ("summer", "winter")

    later = LaterManifest.model_validate(colours.manifest.model_dump())
    monkeypatch.setattr("retrieval.bundle.open_bundle", lambda _: Bundle(colours.folder, later))
    shown = " ".join(sightfix("show", str(colours.folder)).stdout.split())
    assert 'seasons seen ["summer", "winter"]' in shown


def test_show_as_json(colours: Bundle) -> None:
    content = json.loads(sightfix("show", str(colours.folder), "--json").stdout)
    assert content.pop("folder") == str(colours.folder)
    assert BundleManifest.model_validate(content) == colours.manifest


def test_verify(colours: Bundle) -> None:
    done = sightfix("verify", str(colours.folder))
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines[:-1]] == ["OK"] * 5
    assert lines[-1] == "the bundle is whole: 5 checks passed"


def test_verify_a_damaged_bundle(colours: Bundle) -> None:
    flip_byte(colours.folder / "model.fp16.onnx")
    done = sightfix("verify", str(colours.folder))
    assert done.exit_code == 1
    assert f"FAILED  model.fp16.onnx: {colours.folder / 'model.fp16.onnx'}: the file is damaged" in done.stdout
    assert done.stdout.splitlines()[-1] == "1 of 3 checks failed: do not use this bundle"


def test_what_is_no_bundle_is_an_error(tmp_path: Path) -> None:
    for command in ("show", "verify"):
        done = sightfix(command, str(tmp_path))
        assert isinstance(done.exception, BundleError), "the command line prints these without a traceback"
        assert "Give the folder of a bundle" in str(done.exception)


def test_diff(colours: Bundle, tmp_path: Path) -> None:
    write_other_bundle(colours, tmp_path / "other")
    shown = sightfix("diff", str(colours.folder), str(tmp_path / "other")).stdout
    assert "preprocessing.fit  stretch" in shown
    assert "not comparable: fingerprints differ; an index of one cannot be searched with the other." in shown
    same = sightfix("diff", "default", "default").stdout
    assert "They state the same in every field." in same
    assert "comparable: fingerprints are equal" in same


def photos_with_positions(folder: Path, count: int) -> str:
    lines = ["path,lat,lon"]
    for number in range(count):
        pattern(number).save(folder / f"{number}.png")
        lines.append(f"{number}.png,48.0,11.{number}")
    (folder / "photos.csv").write_text("\n".join(lines) + "\n")
    return f"csv:{folder / 'photos.csv'}"


def test_diff_with_photos(colours: Bundle, tmp_path: Path) -> None:
    write_other_bundle(colours, tmp_path / "other")
    spec = photos_with_positions(tmp_path, 5)
    given = (str(colours.folder), str(tmp_path / "other"), "--photos", spec)
    shown = sightfix("diff", *given, "--most", "3").stdout
    assert "Descriptors of the same photo: cosine 0.9" in shown
    assert "over 3 photos." in shown
    content: dict[str, Any] = json.loads(sightfix("diff", *given, "--json").stdout)
    assert content["comparable"] is False
    assert content["agreement"]["photos"] == 5
    assert np.isfinite(content["agreement"]["worst_cosine"])
    assert Image.open(content["agreement"]["worst_photo"]).size == (96, 72)
