"""`sightfix compare` from photos to tables, with real training on a handful of made-up photos."""

import csv
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from retrieval.errors import ParameterError, SightfixError
from sightfix.commands.compare import compare
from tests.training.small_encoder import SMALL_NETWORK
from tests.training.walks import make_walks
from training.run.training_run import TrainingStoppedError

APP = typer.Typer()
APP.command()(compare)
QUICK = (*SMALL_NETWORK, "training.pairs=4", "training.epochs=1", "geopair.never_negative_radius_m=25")
SETTINGS = [part for setting in QUICK for part in ("--set", setting)]


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(APP, [str(argument) for argument in arguments], catch_exceptions=False)


def write_walks(folder: Path, places: int, first_seed: int, east_deg: float) -> str:
    """Photos of two walks, and the spec of their table."""
    lines = ["path,lat,lon,session"]
    for reference in make_walks(folder, places, first_seed=first_seed):
        assert reference.position is not None
        lines.append(
            f"{reference.path.name},{reference.position.lat},{reference.position.lon + east_deg},{reference.session}"
        )
    (folder / "walks.csv").write_text("\n".join(lines) + "\n")
    return f"csv:{folder / 'walks.csv'}"


@pytest.fixture(scope="module")
def west(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_walks(tmp_path_factory.mktemp("west"), 12, 0, 0.0)


@pytest.fixture(scope="module")
def east(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    spec = write_walks(tmp_path_factory.mktemp("east"), 6, 700, 1.0)
    return (
        *("--eval", "forth", "--eval-database", f"{spec}?sessions=walk0", "--eval-queries", f"{spec}?sessions=walk1"),
        *("--eval", "back", "--eval-database", f"{spec}?sessions=walk1", "--eval-queries", f"{spec}?sessions=walk0"),
    )


def test_from_photos_to_tables(west: str, east: tuple[str, ...], tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ("simclr-efficientnet-lite0", "triplet-efficientnet-lite0", "--train", west, *east, "--seeds", "2")
    where = ("--out", out, "--cache", tmp_path / "cache", "--device", "cpu")
    result = run(*arguments, *where, *SETTINGS)
    assert result.exit_code == 0, result.output
    assert "4 of 4: triplet-efficientnet-lite0, seed 1" in result.output
    assert "epoch 1 of 1" in result.output
    with (out / "table.csv").open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 3 * 2 * 2 * 3
    assert [line["method"] for line in lines[::12]] == ["untrained", "triplet", "simclr"]
    assert {line["seeds"] for line in lines[12:]} == {"2"}
    table = (out / "table.md").read_text("utf-8")
    assert "## Difference to the baseline (triplet) at R@1, points" in table
    assert "Not complete" not in table
    assert (out / "comparison.png").is_file()
    again = run(*arguments, *where, *SETTINGS)
    assert again.output.count("done before") == 4
    assert "epoch 1 of 1" not in again.output
    assert (out / "table.md").read_text("utf-8") == table
    rows_of_checkpoints(west, east, out, tmp_path)


def rows_of_checkpoints(west: str, east: tuple[str, ...], out: Path, tmp_path: Path) -> None:
    """The runs just made as rows of a comparison that trains nothing."""
    runs = out / "runs"
    given = [
        part
        for label in ("simclr", "triplet")
        for part in ("--checkpoint", f"{label}={runs / f'{label}-efficientnet-lite0' / 'seed-0' / 'last'}")
    ]
    result = run(*given, *east, "--radius", "25", "--out", tmp_path / "given", "--cache", tmp_path / "cache")
    assert result.exit_code == 0, result.output
    with (tmp_path / "given" / "table.csv").open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert [line["label"] for line in lines[::6]] == ["untrained", "triplet", "simclr"]


def test_a_signal_ends_with_its_exit_code(
    west: str, east: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise TrainingStoppedError("stopped by SIGTERM", where="x", remedy="Go on", signal_number=15)

    monkeypatch.setattr("training.comparison.compare.compare", stop)
    result = run("simclr-efficientnet-lite0", "--train", west, *east, "--out", tmp_path, *SETTINGS)
    assert result.exit_code == 143
    assert "stopped by SIGTERM" in result.output


def test_what_is_asked_for_is_checked(west: str, east: tuple[str, ...], tmp_path: Path) -> None:
    name, train, out = "simclr-efficientnet-lite0", ("--train", west), ("--out", tmp_path)
    cases: list[tuple[tuple[str | Path, ...], str]] = [
        ((*train, *east, *out), "there is nothing to compare"),
        (("simclr-efficientnet", *train, *east, *out), "there is no recipe 'simclr-efficientnet'"),
        ((name, *train, *out), "there is no evaluation set"),
        ((name, *east, *out), "there are no photos to train on"),
        ((name, *train, *east[:-2], *out), "2 --eval, 2 --eval-database and 1 --eval-queries"),
        ((name, *train, *east, *east, *out), "the evaluation set 'forth' is given 2 times"),
        ((name, name, *train, *east, *out), f"the row '{name}' is given 2 times"),
        ((name, *train, *east, *out, "--seeds", "0"), "0 seeds train nothing"),
        ((name, *train, *east, *out, "--set", "training.seed=3"), "training.seed is what --seeds counts"),
        ((name, *train, *east, *out, "--checkpoint", "mine"), "'mine' is not LABEL=DIR"),
        ((name, *train, *east, *out, *("--checkpoint", "m=a") * 2), "the label 'm' is given to two checkpoints"),
    ]
    for arguments, message in cases:
        with pytest.raises(SightfixError, match=message.replace("[", r"\[")):
            run(*arguments)


def test_hold_out_chooses_the_best(west: str, east: tuple[str, ...], tmp_path: Path) -> None:
    """With photos held out of training, validation says which checkpoint is evaluated."""
    name, where = "simclr-efficientnet-lite0", ("--out", tmp_path / "out", "--cache", tmp_path / "cache")
    more = ("--seeds", "1", "--hold-out", "0.3", "--radius", "25", "--device", "cpu")
    result = run(name, "--train", west, *east, *where, *more, *SETTINGS)
    assert result.exit_code == 0, result.output
    assert "held out to choose the best checkpoints by" in result.output
    assert (tmp_path / "out" / "runs" / name / "seed-0" / "best").is_dir()


def test_queries_far_from_the_database(west: str, east: tuple[str, ...], tmp_path: Path) -> None:
    mixed = (*east[:4], "--eval-queries", west)
    with pytest.raises(ParameterError, match="evaluation set forth: none of the 24 queries"):
        run("simclr-efficientnet-lite0", "--train", west, *mixed, "--out", tmp_path, *SETTINGS)
