"""Where settings come from, what is refused, and what --check-config tries."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from retrieval.errors import ParameterError
from service.configuration import read_configuration
from service.settings import ServerSettings
from sightfix.cli import app
from tests.conftest import PublishedPlaces


def write(folder: Path, text: str) -> Path:
    path = folder / "sightfix.toml"
    path.write_text(text)
    return path


def test_flags_win_over_the_environment_and_that_over_the_file(tmp_path: Path) -> None:
    file = write(tmp_path, 'port = 1\nmax_waiting = 2\nhost = "::1"\nlog_level = "debug"\n')
    read = read_configuration(
        file, {"port": 3, "index": None}, {"SIGHTFIX_PORT": "4", "SIGHTFIX_MAX_WAITING": "5", "HOME": "/"}
    )
    settings = read.settings
    assert (settings.port, settings.max_waiting, settings.host, settings.log_level) == (3, 5, "::1", "debug")
    assert settings.max_batch == ServerSettings().max_batch
    origins = read.origins
    assert (origins["port"], origins["max_waiting"], origins["host"], origins["index"]) == (
        "flag",
        "environment",
        "file",
        "default",
    )


def test_the_environment_of_the_process_is_not_looked_at_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIGHTFIX_PORT", "9")
    assert read_configuration(environment={}).settings.port == 8080
    assert read_configuration().settings.port == 9


@pytest.mark.parametrize(
    ("text", "environment", "message"),
    [
        ("prot = 1\n", {}, r"sightfix\.toml: unknown setting prot\. The settings are host, port, "),
        (
            "",
            {"SIGHTFIX_PROT": "1"},
            r"the environment: unknown setting SIGHTFIX_PROT\. .*SIGHTFIX_PORT",
        ),
        ("port = 70000\n", {}, r"sightfix\.toml: port: Input should be less than or equal to 65535, not 70000"),
        ("", {"SIGHTFIX_PORT": "http"}, r"SIGHTFIX_PORT: Input should be a valid integer.*not 'http'"),
        ("port = \n", {}, r"sightfix\.toml: the configuration is not TOML"),
    ],
)
def test_what_is_wrong_is_named_where_it_stands(
    tmp_path: Path, text: str, environment: dict[str, str], message: str
) -> None:
    with pytest.raises(ParameterError, match=message):
        read_configuration(write(tmp_path, text), environment=environment)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="the configuration cannot be read"):
        read_configuration(tmp_path / "none.toml", environment={})


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_this_machine_needs_no_keys(host: str) -> None:
    ServerSettings(host=host).check_exposure()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "robot.example.org"])
def test_others_need_keys_or_a_word(host: str, tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match=f"every client that can reach {host} could use this server.*--insecure"):
        ServerSettings(host=host).check_exposure()
    ServerSettings(host=host, insecure=True).check_exposure()
    ServerSettings(host=host, api_keys=tmp_path / "keys.toml").check_exposure()


def test_check_config_tells_what_is_right(published: PublishedPlaces, tmp_path: Path) -> None:
    file = write(tmp_path, f'indexes = "{published.indexes}"\n')
    result = CliRunner().invoke(app, ["serve", "--config", str(file), "--port", "8123", "--check-config"])
    assert result.exit_code == 0, result.output
    lines = [" ".join(line.split()) for line in result.output.splitlines()]
    assert "port 8123 flag" in lines
    assert f"indexes {published.indexes} file" in lines
    assert "max_waiting 64 default" in lines
    assert "max_batch default" in lines
    assert [line for line in lines if line.startswith("ok place index: places, version ")]


def test_check_config_tells_everything_that_is_wrong(tmp_path: Path) -> None:
    arguments = ["serve", "--host", "0.0.0.0", "--indexes", str(tmp_path), "--bundle", str(tmp_path), "--check-config"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    wrong = [line for line in result.output.splitlines() if line.startswith("wrong ")]
    assert [line.split(":")[0] for line in wrong] == ["wrong address", "wrong place index", "wrong bundle"]


def test_folders_are_separated_as_in_path(tmp_path: Path) -> None:
    read = read_configuration(environment={"SIGHTFIX_SOURCE_ROOTS": f"/photos:{tmp_path}:"})
    assert read.settings.source_roots == (Path("/photos"), tmp_path)
    file = write(tmp_path, 'source_roots = ["/a", "/b"]\n')
    assert read_configuration(file, environment={}).settings.source_roots == (Path("/a"), Path("/b"))
