"""What a command prints under "Next:" works as it stands, with what the user has for PHOTOS and PHOTO, to its end."""

import re
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx
import pytest
from typer.testing import CliRunner

from retrieval.bundle import Bundle
from sightfix.cli import app
from tests.forked import ForkedProcess, run_command, sightfix
from tests.places import make_places
from tests.retrieval.engines.colour_bundle import write_colour_bundle
from tests.retrieval.other_bundle import write_other_bundle
from tests.running_server import watched
from tests.training.small_encoder import SMALL_NETWORK
from tests.training.walks import make_walks

COMMANDS: Final = Path(__file__).parents[2] / "sightfix" / "commands"
# How often each module prints such a line; every one has a test here.
PRINTING: Final = {"bundle.py": 2, "export.py": 1, "index.py": 1, "inspect.py": 1, "options.py": 1, "train.py": 1}


@dataclass(frozen=True)
class User:
    """Somebody with photos, in a folder of his own."""

    folder: Path
    photos: list[Path]

    def run(self, *arguments: str) -> str:
        """Run a command; returns what it prints."""
        done = sightfix(*arguments, folder=self.folder)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def next_of(self, output: str) -> list[str]:
        """The words of the last "Next:" line."""
        lines = [line for line in output.splitlines() if line.startswith("Next: ")]
        program, *words = shlex.split(lines[-1].removeprefix("Next: "))
        assert program == "sightfix"
        own = {"PHOTOS": "csv:my photos/refs.csv", "PHOTO": str(self.photos[1])}
        return [own.get(word, word) for word in words]

    def follow(self, output: str) -> None:
        """Run the next line, and what that prints, until a server has found one of the photos."""
        words = self.next_of(output)
        if words[0] == "serve":
            self.serve(words)
        else:
            self.follow(self.run(*words))

    def serve(self, words: Sequence[str]) -> None:
        """Run a server, ask it where one of its photos was taken, and stop it."""
        log = self.folder / "server.log"
        log.unlink(missing_ok=True)
        command = [*words, "--port", "0"]
        process = ForkedProcess(
            run_command, command, log=log, folder=self.folder, environment={"SIGHTFIX_METRICS": "off"}
        )
        with watched(process, log) as server:
            server.wait_until_ready()
            photo = self.photos[3]
            answer = httpx.post(
                f"{server.url}/localize", content=photo.read_bytes(), headers={"Content-Type": "image/jpeg"}
            )
            assert answer.status_code == 200, answer.text
            best = answer.json()["matches"][0]
            assert (best["reference_id"], round(best["score"], 2)) == (photo.name, 1.0)
            assert server.stop() == 0


@pytest.fixture
def user(tmp_path: Path) -> User:
    places = make_places(tmp_path / "made", 6)
    folder = tmp_path / "here"
    photos = shutil.copytree(tmp_path / "made" / "photos", folder / "my photos")
    lines = [f"{row.path.name},{row.position.lat},{row.position.lon}" for row in places.rows if row.position]
    (photos / "refs.csv").write_text("\n".join(["path,lat,lon", *lines]) + "\n")
    return User(folder, sorted(photos.glob("*.jpg")))


@pytest.fixture
def other(bundle: Bundle, user: User) -> Bundle:
    """Not the shipped one, and in a folder that a shell would take for two."""
    return write_other_bundle(bundle, user.folder / "my bundle")


INDEX: Final = ("index", "csv:my photos/refs.csv")


def test_every_next_line_is_printed_by_the_one_function_and_has_a_test() -> None:
    printing = {path.name: len(re.findall(r"\bprint_next\(", path.read_text())) for path in COMMANDS.glob("*.py")}
    assert {name: count for name, count in printing.items() if count} == PRINTING
    by_hand = [path.name for path in COMMANDS.parent.rglob("*.py") if '"Next: ' in path.read_text()]
    assert by_hand == ["console.py"]


@pytest.mark.parametrize("options", [(), ("--name", "campus"), ("--indexes", "all my indexes")])
def test_after_indexing(user: User, options: tuple[str, ...]) -> None:
    user.follow(user.run(*INDEX, *options))


@pytest.mark.parametrize("options", [(), ("--name", "campus"), ("--indexes", "all my indexes")])
def test_after_indexing_with_a_bundle(user: User, other: Bundle, options: tuple[str, ...]) -> None:
    output = user.run(*INDEX, "--bundle", "my bundle", *options)
    assert "--bundle" not in user.next_of(output)
    shutil.rmtree(other.folder)
    user.follow(output)


@pytest.mark.parametrize("command", ["index --store", "index push"])
@pytest.mark.parametrize("model", ["shipped", "other"])
def test_after_publishing_in_milvus(user: User, other: Bundle, command: str, model: str) -> None:
    bundle = () if model == "shipped" else ("--bundle", "my bundle")
    store = ("--store", f"milvus://{user.folder}/milvus.db")
    if command == "index push":
        user.run(*INDEX, *bundle)
        output = user.run("index", "push", *store)
    else:
        output = user.run(*INDEX, *bundle, *store)
    assert ("--bundle" in user.next_of(output)) == (model == "other")
    user.follow(output)


def test_after_inspecting(user: User) -> None:
    user.follow(user.run("inspect", "csv:my photos/refs.csv"))


def test_after_exporting(user: User) -> None:
    fitted = ("--whiten", "4", "--fit", "csv:my photos/refs.csv")
    user.follow(user.run("export", "default", "--out", "my bundle", *fitted))


@pytest.mark.parametrize("source", ["default", "my bundle", "indexes/default"])
def test_after_looking_at_a_bundle(user: User, other: Bundle, source: str) -> None:
    user.run(*INDEX, "--bundle", "my bundle")
    user.follow(user.run("bundle", "show", source))


def test_after_building_an_engine(user: User, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU the line gets as far as a machine without one allows."""
    monkeypatch.setattr("export.tensorrt_plan.build_plan", lambda *_, **__: user.folder / "model.plan")
    both = write_colour_bundle(user.folder / "both precisions", offset=1.0)
    done = CliRunner().invoke(app, ["bundle", "engine", str(both.folder)], catch_exceptions=False)
    words = user.next_of(done.stdout)
    assert words == ["serve", "--provider", "tensorrt", "--precision", "fp16", "--bundle", str(both.folder)]
    user.run(*INDEX, "--bundle", str(both.folder))
    tried = sightfix(*words, "--port", "0", "--allow-cpu-fallback", "--check-config", folder=user.folder)
    assert tried.returncode == 0, tried.stdout
    shipped = CliRunner().invoke(app, ["bundle", "engine", "--precision", "fp32"], catch_exceptions=False)
    assert user.next_of(shipped.stdout) == ["serve", "--provider", "tensorrt", "--precision", "fp32"]


def test_after_training(user: User) -> None:
    walks = make_walks(user.folder / "walks", 40)
    lines = [f"{row.path},{row.position.lat},{row.position.lon},{row.session}" for row in walks if row.position]
    (user.folder / "walks.csv").write_text("\n".join(["path,lat,lon,session", *lines]) + "\n")
    small = [*SMALL_NETWORK, "training.pairs=8", "training.epochs=1"]
    overrides = [part for one in small for part in ("--set", one)]
    where = ("--cache", "cache", "--out", "my run", "--device", "cpu")
    output = user.run("train", "simclr-efficientnet-lite0", "--photos", "csv:walks.csv", *where, *overrides)
    assert user.next_of(output)[0] == "explain"
    assert "wrote heat.png" in user.run(*user.next_of(output))
