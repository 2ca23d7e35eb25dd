"""Keys: made, hashed, found, withdrawn; and what a request needs them for."""

import stat
import time
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from retrieval.errors import ParameterError
from service import api_keys
from service.api_keys import ApiKeyError, KeyRing, make_key, presented_key, read_keys, scope_of
from service.http.app import create_app
from service.serving.localization import LocalizationService
from service.settings import ServerSettings
from tests.conftest import PublishedPlaces


def test_a_key_is_made_once_and_only_its_hash_is_kept(tmp_path: Path) -> None:
    file = tmp_path / "etc" / "keys.toml"
    robot, operator = make_key(file, "robot-7", ("localize",)), make_key(file, "ops", ("admin",))
    assert robot != operator
    assert robot.startswith("sfx_")
    assert len(robot) == 47
    text = file.read_text()
    assert robot not in text
    assert operator not in text
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [(key.name, key.scopes) for key in read_keys(file)] == [("robot-7", ("localize",)), ("ops", ("admin",))]
    ring = KeyRing(file)
    found = ring.find(robot)
    assert found is not None
    assert found.name == "robot-7"
    assert (found.allows("localize"), found.allows("admin")) == (True, False)
    administrator = ring.find(operator)
    assert administrator is not None
    assert administrator.allows("localize")
    assert ring.find(robot + "x") is None
    assert ring.find("") is None


def test_names_are_taken_once_and_plain(tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    make_key(file, "robot", ("localize",))
    before = file.read_bytes()
    with pytest.raises(ApiKeyError, match="there is a key of that name, 'robot'"):
        make_key(file, "robot", ("admin",))
    with pytest.raises(ParameterError, match="cannot be the name of a key"):
        make_key(file, 'x"\n[[key]]', ("admin",))
    assert file.read_bytes() == before


HASH = "0" * 64


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[key]", "the API keys are not TOML"),
        ("[[keys]]\n", "keys: Extra inputs are not permitted"),
        (
            f'[[key]]\nname = "a"\nsha256 = "{HASH}"\nscopes = ["all"]\n',
            "key.0.scopes.0: Input should be",
        ),
        (f'[[key]]\nname = "a"\nsha256 = "{HASH}"\nscopes = []\n', "key.0.scopes"),
        ('[[key]]\nname = "a"\nsha256 = "secret"\nscopes = ["admin"]\n', "key.0.sha256: String should match"),
        (f'[[key]]\nname = "a"\nsha256 = "{HASH}"\nscopes = ["admin"]\n' * 2, "the name a occurs twice"),
    ],
)
def test_a_file_that_is_wrong_is_refused_without_being_quoted(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "keys.toml"
    file.write_text(text)
    with pytest.raises(ApiKeyError, match=message) as caught:
        read_keys(file)
    assert "secret" not in str(caught.value)


def test_a_missing_file_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ApiKeyError, match=r"cannot be read .*sightfix key NAME --file FILE"):
        KeyRing(tmp_path / "none.toml")


def test_keys_come_and_go_without_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_keys, "_LOOK_EVERY_S", 0.0)
    file = tmp_path / "keys.toml"
    first = make_key(file, "first", ("localize",))
    ring = KeyRing(file)
    second = make_key(file, "second", ("localize",))
    assert ring.find(second) is not None
    text = file.read_text()
    file.write_text("[[key")
    assert ring.find(first) is not None, "a file that cannot be read leaves the old keys"
    time.sleep(0.01)
    file.write_text(text[: text.index("[[key]]", text.index("[[key]]") + 1)])
    assert ring.find(second) is None
    assert ring.find(first) is not None


def test_a_file_replaced_while_it_is_read_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_keys, "_LOOK_EVERY_S", 0.0)
    file = tmp_path / "keys.toml"
    make_key(file, "first", ("localize",))
    late = []

    def read_then_replaced(path: Path) -> list[api_keys.ApiKey]:
        monkeypatch.setattr(api_keys, "read_keys", read_keys)
        keys = read_keys(path)
        late.append(make_key(path, "second", ("localize",)))
        return keys

    monkeypatch.setattr(api_keys, "read_keys", read_then_replaced)
    ring = KeyRing(file)
    assert ring.find(late[0]) is not None


@pytest.mark.parametrize(
    ("path", "scope"),
    [
        ("/livez", None), ("/readyz", None), ("/v2/health/ready", None), ("/", None), ("/docs", None),
        ("/static/app.js", None), ("/openapi.json", None),
        ("/localize", "localize"), ("/v1/localize", "localize"), ("/info", "localize"), ("/metrics", "localize"),
        ("/references/a/image", "localize"), ("/indexes", "localize"), ("/indexes/places", "localize"),
        ("/v2/models/x/ready", "localize"), ("/livez/../localize", "localize"), ("/nowhere", "localize"),
        ("/indexes/places/activate", "admin"), ("/v1/indexes/places/activate", "admin"), ("/jobs", "admin"),
        ("/v1/jobs/7", "admin"), ("/jobs/7/cancel", "admin"), ("/jobs:7", "admin"),
        ("/jobs\n", "admin"), ("/v1/jobs/7/cancel\n", "admin"), ("/jobs/7\n8", "admin"),
        ("/indexes/places/activate\n", "admin"), ("/indexes/a\nb/activate", "admin"), ("/livez\nx", "localize"),
    ],
)  # fmt: skip
def test_what_a_path_needs(path: str, scope: str | None) -> None:
    assert scope_of(path) == scope


@pytest.mark.parametrize(
    ("authorization", "api_key", "key"),
    [
        ("Bearer abc", None, "abc"), ("bearer  abc ", None, "abc"), (None, "abc", "abc"), ("Basic abc", None, None),
        ("Bearer", None, None), ("Bearer ", None, None), (None, None, None), ("Bearer abc", "xyz", "xyz"),
    ],
)  # fmt: skip
def test_how_a_key_is_presented(authorization: str | None, api_key: str | None, key: str | None) -> None:
    assert presented_key(authorization, api_key) == key


def test_a_server_with_keys(published: PublishedPlaces, tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    robot, operator = make_key(file, "robot", ("localize",)), make_key(file, "ops", ("admin",))
    localization = LocalizationService(ServerSettings(indexes=published.indexes, api_keys=file, threads=1))
    photo = published.places.rows[2].path.read_bytes()
    with TestClient(create_app(localization)) as client:
        localization.live.wait_until_loaded(60)

        def localize(**headers: str) -> tuple[int, str | None]:
            response = client.post("/localize", content=photo, headers={"Content-Type": "image/jpeg", **headers})
            return response.status_code, response.json().get("code")

        assert localize() == (401, "unauthenticated")
        assert localize(Authorization="Bearer sfx_wrong") == (401, "unauthenticated")
        assert localize(Authorization=f"Bearer {robot}") == (200, None)
        assert localize(**{"X-API-Key": operator}) == (200, None)
        assert client.get("/readyz").status_code == 200
        refused = client.get("/info")
        assert refused.headers["www-authenticate"] == 'Bearer realm="sightfix"'
        assert refused.headers["content-type"] == "application/problem+json"
        assert refused.json()["instance"].endswith(refused.headers["x-request-id"])
        forbidden = client.post(
            "/indexes/places/activate", json={"version": "x"}, headers={"Authorization": f"Bearer {robot}"}
        )
        assert (forbidden.status_code, forbidden.json()["code"]) == (403, "forbidden")
        assert "the API key 'robot' does not have the scope admin" in forbidden.json()["detail"]
        # Routes let a line feed at the end of a path pass; the guard must not take such a path for another one.
        sneaked = client.post(
            "/indexes/places/activate%0A", json={"version": "x"}, headers={"Authorization": f"Bearer {robot}"}
        )
        assert (sneaked.status_code, sneaked.json()["code"]) == (403, "forbidden")
        allowed = client.post(
            "/indexes/places/activate", json={"version": "x"}, headers={"Authorization": f"Bearer {operator}"}
        )
        assert (allowed.status_code, allowed.json()["code"]) == (404, "version_not_found")


def test_the_body_of_a_stranger_is_not_read(published: PublishedPlaces, tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    make_key(file, "robot", ("localize",))
    client = TestClient(create_app(LocalizationService(ServerSettings(indexes=published.indexes, api_keys=file))))
    read = []

    def body():
        for number in range(1000):
            read.append(number)
            yield b"x" * 100_000

    response = client.post("/localize", content=body(), headers={"Content-Type": "image/jpeg"})
    assert response.status_code == 401
    assert response.headers["connection"] == "close"
