"""`sightfix train` as a user gives it: lists, trains, stops and goes on, and says what is wrong and what to do."""

import csv
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import typer
from safetensors.torch import save_file
from typer.testing import CliRunner

from retrieval.errors import SightfixError
from retrieval.references.reference import Reference
from sightfix.commands.train import train
from tests.training.small_encoder import SMALL_NETWORK
from tests.training.walks import make_walks
from training.checkpoint import open_checkpoint

APP = typer.Typer()
APP.command()(train)

RECIPE = "simclr-efficientnet-lite0"
SMALL = [*SMALL_NETWORK, "training.pairs=8", "training.epochs=1"]


def sets(*overrides: str) -> list[str]:
    return [part for override in overrides for part in ("--set", override)]


def run(*arguments: str | Path) -> str:
    result = CliRunner().invoke(APP, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def write_table(path: Path, references: list[Reference]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "lat", "lon", "session"])
        for row in references:
            assert row.position is not None
            writer.writerow([row.path, row.position.lat, row.position.lon, row.session])
    return path


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("walks")
    return write_table(folder / "refs.csv", make_walks(folder / "photos", 40))


def trained(table: Path, folder: Path, *arguments: str | Path, recipe: str = RECIPE) -> str:
    where = ("--cache", folder / "cache", "--out", folder / "run", "--device", "cpu")
    return run(recipe, "--photos", f"csv:{table}", *where, *sets(*SMALL), *arguments)


def test_without_a_recipe_it_lists_them() -> None:
    shown = run()
    assert "simclr-resnet50 " in shown
    assert "SimCLR on EfficientNet-Lite0-GeM, for two cores" in shown


def test_from_photos_to_a_checkpoint(table: Path, tmp_path: Path) -> None:
    shown = trained(table, tmp_path).splitlines()
    assert shown[0].startswith("held out to measure recall on: 6 photos to find, 6 queries; 2 more")
    assert shown[1].startswith("simclr-efficientnet-lite0  simclr on test_resnet.r160_in1k, 64×96, 66 photos, 8 pairs")
    assert shown[2].startswith("untrained  R@1 ")
    assert "(chance R@1 16.7 %)" in shown[2]
    assert shown[3].startswith("epoch 1 of 1  loss ")
    assert shown[3].endswith("img/s  best so far")
    assert shown[4] == f"trained {tmp_path / 'run' / 'best'}, 1 epoch"
    assert open_checkpoint(tmp_path / "run" / "best").manifest.epoch == 1
    again = trained(table, tmp_path).splitlines()
    assert "the run is finished" in again[2]


def test_sigterm_saves_and_the_same_command_goes_on(table: Path, tmp_path: Path) -> None:
    command = [
        *(sys.executable, "-m", "sightfix.cli", "train", RECIPE, "--photos", f"csv:{table}", "--device", "cpu"),
        *("--cache", tmp_path / "cache", "--out", tmp_path / "run"),
        *sets(*SMALL, "training.epochs=200", "validation.every_epochs=1000", "training.log_every_steps=1"),
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        steps = tmp_path / "run" / "steps.csv"
        for _ in range(600):
            if steps.exists() and len(steps.read_text().splitlines()) > 12:
                break
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        shown, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 128 + signal.SIGTERM, shown
    assert "stopped by SIGTERM after epoch" in shown
    assert "Give the same command again to go on from there" in shown
    state = torch.load(open_checkpoint(tmp_path / "run" / "last").trainer_state(), weights_only=True)
    reached = state["progress"]["step"]
    assert reached >= 12
    last = steps.read_text().splitlines()[-1]
    assert int(last.split(",")[1]) == reached


def refused(table: Path, tmp_path: Path, *arguments: str, recipe: str = RECIPE) -> str:
    with pytest.raises(SightfixError) as caught:
        trained(table, tmp_path, *arguments, recipe=recipe)
    return str(caught.value)


def test_photos_too_far_apart(tmp_path: Path) -> None:
    walks = make_walks(tmp_path / "photos", 20)
    table = write_table(tmp_path / "refs.csv", walks)
    text = refused(table, tmp_path, "--hold-out", "0", *sets("geopair.positive_radius_m=2"))
    assert "40 references" in text
    assert "3.00 m apart" in text
    assert "geopair.positive_radius_m" in text


def test_one_session_with_other_session_only(tmp_path: Path) -> None:
    table = write_table(tmp_path / "refs.csv", make_walks(tmp_path / "photos", 20, sessions=1))
    text = refused(table, tmp_path, "--hold-out", "0")
    assert "one session" in text
    assert "geopair.other_session_only=false" in text


def test_an_unreadable_photo_is_named_or_left_out(tmp_path: Path) -> None:
    walks = make_walks(tmp_path / "photos", 20)
    walks[3].path.write_bytes(b"\xff\xd8\xff no photo")
    table = write_table(tmp_path / "refs.csv", walks)
    text = refused(table, tmp_path, "--hold-out", "0")
    assert "walk0_003.jpg" in text
    assert "So far 1 photo is unreadable, none may be" in text
    assert "--max-unreadable" in text
    shown = trained(table, tmp_path, "--hold-out", "0", "--max-unreadable", "1")
    assert "left out: " in shown
    assert "walk0_003.jpg" in shown


def test_a_queue_smaller_than_a_batch(table: Path, tmp_path: Path) -> None:
    text = refused(table, tmp_path, *sets("objective.queue_size=4"), recipe="mocov2-efficientnet-lite0")
    assert text.startswith("the queue holds 4 keys, fewer than one batch of 8. Set queue_size to 8 or more")


def test_a_typo_in_a_recipe(table: Path, tmp_path: Path) -> None:
    assert "Did you mean training.epochs?" in refused(table, tmp_path, *sets("training.epoch=3"))
    assert "Did you mean simclr-efficientnet-lite0?" in refused(table, tmp_path, recipe="simclr-eficientnet-lite0")


def test_weights_that_do_not_fit_the_backbone(table: Path, tmp_path: Path) -> None:
    save_file({"conv1.weight": torch.zeros(3, 3), "other.weight": torch.zeros(2)}, tmp_path / "weights.safetensors")
    text = refused(table, tmp_path, *sets(f"network.pretrained={tmp_path / 'weights.safetensors'}"))
    assert "weights.safetensors" in text
    assert "other.weight" in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--validation-database", "csv:x.csv"), "Give both --validation-database and --validation-queries"),
        (("--hold-out", "0.7"), "Give more than 0 and at most 0.5"),
        (("--device", "tpu"), "Choose auto, cpu or cuda"),
    ],
)
def test_options_that_make_no_sense(table: Path, tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    assert words in refused(table, tmp_path, *arguments)


def test_no_photos() -> None:
    with pytest.raises(SightfixError, match="there are no photos to train on"):
        run(RECIPE)
