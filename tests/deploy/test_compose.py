"""The Compose file: of the right form, with settings that exist, and nothing open that need not be."""

import json
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from service.configuration import read_configuration

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text())


def servers(compose: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: service for name, service in compose["services"].items() if name.startswith("server-")}


def test_it_follows_the_compose_specification(compose: dict[str, Any]) -> None:
    schema = json.loads((files("check_jsonschema") / "builtin_schemas" / "vendor" / "compose-spec.json").read_text())
    jsonschema.validate(compose, schema)


def test_every_setting_exists_and_is_valid(compose: dict[str, Any]) -> None:
    assert set(servers(compose)) == {"server-cpu", "server-gpu"}
    for service in servers(compose).values():
        settings = read_configuration(environment=service["environment"]).settings
        settings.check_exposure()
        assert settings.metrics_port == 9464
        assert _seconds(service["stop_grace_period"]) > settings.drain_delay_s + settings.stop_timeout_s + 5
        assert str(settings.metrics_port) in service["expose"]


def test_every_port_is_published_on_this_machine_only(compose: dict[str, Any]) -> None:
    ports = [port for service in compose["services"].values() for port in service.get("ports", [])]
    assert len(ports) >= 4
    assert all(port.startswith("127.0.0.1:") for port in ports)
    assert not any("9464" in port for port in ports)


def test_servers_write_nothing_but_tmp_and_have_no_privileges(compose: dict[str, Any]) -> None:
    for service in servers(compose).values():
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]
        assert [mount.partition(":")[0] for mount in service["tmpfs"]] == ["/tmp"]
        assert all(volume.endswith(":ro") for volume in service["volumes"])


def test_images_are_pinned_and_targets_exist(compose: dict[str, Any]) -> None:
    dockerfile = (DEPLOY.parent / "Dockerfile").read_text()
    for service in compose["services"].values():
        assert re.search(r":[\w.]+$", service["image"])
        assert not service["image"].endswith(":latest")
        if "build" in service:
            assert f"AS {service['build']['target']}\n" in dockerfile


def test_what_is_mounted_is_there(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        for volume in service.get("volumes", []):
            source = volume.partition(":")[0]
            if source.startswith("./"):
                assert (DEPLOY / source).exists(), source


def test_prometheus_scrapes_the_server_by_its_alias(compose: dict[str, Any]) -> None:
    scrape = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    (job,) = scrape["scrape_configs"]
    (target,) = job["static_configs"][0]["targets"]
    host, port = target.split(":")
    for service in servers(compose).values():
        assert host in service["networks"]["default"]["aliases"]
        assert port in service["expose"]
    assert all((DEPLOY / "prometheus" / name).exists() for name in scrape["rule_files"])


def _seconds(text: str) -> int:
    return int(text.removesuffix("s"))
