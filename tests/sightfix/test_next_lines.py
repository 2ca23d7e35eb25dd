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

from retrieval.bundle import Bundle, open_bundle
from retrieval.index.folder import published_versions
from retrieval.index.milvus.connection import MilvusAddress
from retrieval.index.milvus.store import MilvusStore
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
PRINTING: Final = {"bundle.py": 4, "export.py": 1, "index.py": 1, "inspect.py": 1, "options.py": 1, "train.py": 1}


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


def user_with(tmp_path: Path, count: int) -> User:
    places = make_places(tmp_path / "made", count)
    folder = tmp_path / "here"
    photos = shutil.copytree(tmp_path / "made" / "photos", folder / "my photos")
    lines = [f"{row.path.name},{row.position.lat},{row.position.lon}" for row in places.rows if row.position]
    (photos / "refs.csv").write_text("\n".join(["path,lat,lon", *lines]) + "\n")
    return User(folder, sorted(photos.glob("*.jpg")))


@pytest.fixture
def user(tmp_path: Path) -> User:
    return user_with(tmp_path, 6)


@pytest.fixture
def adapting(tmp_path: Path) -> User:
    """Whose photos are enough to adapt a bundle to."""
    return user_with(tmp_path, 12)


def is_adapted(user: User) -> bool:
    return open_bundle(user.folder / "indexes" / "default").manifest.adaptation is not None


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


@pytest.mark.parametrize("options", [(), ("--bundle", "my bundle"), ("--refit",), ("--dim", "64")])
def test_after_indexing_with_an_adapted_bundle(adapting: User, bundle: Bundle, options: tuple[str, ...]) -> None:
    other = write_other_bundle(bundle, adapting.folder / "my bundle")
    output = adapting.run(*INDEX, *options)
    assert is_adapted(adapting)
    shutil.rmtree(other.folder)
    adapting.follow(output)


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


def test_after_publishing_an_adapted_index_in_milvus(adapting: User) -> None:
    output = adapting.run(*INDEX, "--store", f"milvus://{adapting.folder}/milvus.db")
    assert is_adapted(adapting)
    assert adapting.next_of(output)[-2:] == ["--bundle", "indexes/default"]
    adapting.follow(output)


def test_after_pushing_a_version_that_is_not_current(user: User, other: Bundle) -> None:
    user.run(*INDEX, "--bundle", "my bundle")
    (version,) = published_versions(user.folder / "indexes" / "default")
    user.run(*INDEX, "--bundle", "default")
    shutil.rmtree(other.folder)
    output = user.run("index", "push", "--version", version, "--store", f"milvus://{user.folder}/milvus.db")
    holder = f"indexes/default/versions/{version}/bundle"
    assert user.next_of(output)[-2:] == ["--bundle", holder]
    store = MilvusStore(MilvusAddress.parse(f"milvus://{user.folder}/milvus.db"))
    assert store.open("default").bundle_remedy.endswith(f"--bundle {shlex.quote(str(user.folder / holder))}")
    store.close()
    user.follow(output)


def test_after_pushing_a_version_that_holds_no_bundle(user: User) -> None:
    written = Path(__file__).parents[1] / "data" / "written_by_c0fdd7f"
    shutil.copytree(written / "indexes" / "exact", user.folder / "indexes" / "old")
    words = user.next_of(user.run("index", "push", "--name", "old", "--store", f"milvus://{user.folder}/milvus.db"))
    assert words[-2:] == ["--bundle", "FOLDER"]
    refused = sightfix(*words[:-2], "--check-config", folder=user.folder)
    assert "or of a place index that holds it: --bundle FOLDER." in refused.stdout + refused.stderr
    user.run(*words[:-1], str(written / "bundle"), "--check-config")


def test_after_inspecting(user: User) -> None:
    user.follow(user.run("inspect", "csv:my photos/refs.csv"))


def test_after_exporting(user: User) -> None:
    fitted = ("--whiten", "4", "--fit", "csv:my photos/refs.csv")
    user.follow(user.run("export", "default", "--out", "my bundle", *fitted))


def test_after_exporting_an_adapted_bundle(adapting: User) -> None:
    photos = "csv:my photos/refs.csv"
    adapting.follow(adapting.run("export", "default", "--out", "my bundle", "--adapt", photos))
    assert open_bundle(adapting.folder / "my bundle").fingerprint == fingerprint_of(adapting)


def test_a_place_index_is_exported_as_the_bundle_that_it_holds(adapting: User) -> None:
    adapting.run(*INDEX)
    output = adapting.run("export", "indexes/default", "--out", "my bundle")
    exported = open_bundle(adapting.folder / "my bundle")
    assert exported.name == open_bundle(adapting.folder / "indexes" / "default").name
    adapting.follow(output)
    assert exported.fingerprint == fingerprint_of(adapting)


def test_a_folder_called_default_is_taken_for_the_shipped_bundle_by_no_command(user: User, other: Bundle) -> None:
    other.folder.rename(user.folder / "default")
    assert other.fingerprint[:12] in user.run("bundle", "show", "default")
    user.run("export", "default", "--out", "exported")
    assert open_bundle(user.folder / "exported").preprocessing == other.preprocessing


def fingerprint_of(user: User) -> str:
    return open_bundle(user.folder / "indexes" / "default").fingerprint


def test_precisions_that_adapting_loses_are_told_and_had_again(tmp_path: Path) -> None:
    """As docs/how-to/export.md says."""
    user = user_with(tmp_path, 64)
    photos = "csv:my photos/refs.csv"
    user.run("export", "default", "--out", "fast", "--precision", "fp16", "--photos", photos)
    output = user.run(*INDEX, "--bundle", "fast")
    (note,) = [line for line in output.splitlines() if line.startswith("note ")]
    assert note.startswith("note the adapted bundle is fp32 only, without fp16. To have them: sightfix export fast ")
    refused = sightfix(*user.next_of(output), "--precision", "fp16", "--check-config", folder=user.folder)
    assert "the bundle has no fp16 graph. Choose among fp32; or make one that has it" in refused.stdout + refused.stderr
    commands = [shlex.split(command) for command in note.partition(": sightfix ")[2].split(", then: sightfix ")]
    assert [command[0] for command in commands] == ["export", "index"]
    commands[0].append("--accept-loss")  # made-up pictures differ more than photos do
    for command in commands:
        output = user.run(*command)
    assert "note " not in output
    user.serve([*user.next_of(output), "--precision", "fp16"])


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


@pytest.mark.parametrize("source", ["default", "my bundle"])
def test_after_building_an_engine_of_what_an_index_would_adapt(
    adapting: User, bundle: Bundle, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("export.tensorrt_plan.build_plan", lambda *_, **__: adapting.folder / "model.plan")
    write_other_bundle(bundle, adapting.folder / "my bundle")
    monkeypatch.chdir(adapting.folder)
    done = CliRunner().invoke(app, ["bundle", "engine", source, "--precision", "fp32"], catch_exceptions=False)
    named = [] if source == "default" else ["--bundle", source]
    assert adapting.next_of(done.stdout) == ["index", "csv:my photos/refs.csv", "--no-adapt", *named]
    adapting.follow(done.stdout)
    assert fingerprint_of(adapting) == open_bundle(Path(source)).fingerprint


def test_after_building_an_engine_of_what_an_index_holds(adapting: User, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("export.tensorrt_plan.build_plan", lambda *_, **__: adapting.folder / "model.plan")
    adapting.run(*INDEX, "--name", "campus", "--indexes", "all my indexes")
    monkeypatch.chdir(adapting.folder)
    done = CliRunner().invoke(
        app, ["bundle", "engine", "all my indexes/campus", "--precision", "fp32"], catch_exceptions=False
    )
    words = adapting.next_of(done.stdout)
    index = ["--index", "campus", "--indexes", "all my indexes"]
    assert words == ["serve", *index, "--provider", "tensorrt", "--precision", "fp32"]
    adapting.run(*words, "--port", "0", "--allow-cpu-fallback", "--check-config")


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
