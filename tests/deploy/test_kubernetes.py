"""The Kubernetes manifests: valid against Kubernetes's own schemas, and agreeing with the server and one another."""

from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from service.configuration import read_configuration
from service.http.app import create_app
from service.observing.definitions import DEFINITIONS
from service.serving.localization import LocalizationService
from service.settings import ServerSettings

KUBERNETES = Path(__file__).resolve().parents[2] / "deploy" / "kubernetes"
# The oldest that is still maintained, and the newest that the schemas know.
VERSIONS = ("1.33", "1.37")


def manifests(folder: str) -> list[Path]:
    return sorted(path for path in (KUBERNETES / folder).glob("*.yaml") if path.name != "kustomization.yaml")


def read(name: str) -> dict[str, Any]:
    (document,) = yaml.safe_load_all((KUBERNETES / name).read_text())
    return document


@pytest.fixture(scope="module")
def pod() -> dict[str, Any]:
    return read("base/deployment.yaml")["spec"]["template"]["spec"]


@pytest.fixture(scope="module")
def server(pod: dict[str, Any]) -> dict[str, Any]:
    (container,) = pod["containers"]
    return container


@pytest.fixture(scope="module")
def settings() -> ServerSettings:
    return read_configuration(environment=read("base/settings.yaml")["data"]).settings


@pytest.mark.parametrize("path", [*manifests("base"), KUBERNETES / "gpu" / "engines.yaml"], ids=lambda path: path.name)
@pytest.mark.parametrize("version", VERSIONS)
def test_every_manifest_follows_its_schema(path: Path, version: str) -> None:
    for document in yaml.safe_load_all(path.read_text()):
        kubernetes_validate.validate(document, version, strict=True)


@pytest.mark.parametrize("folder", ["base", "gpu", "monitoring"])
def test_kustomizations_name_every_file_and_only_such(folder: str) -> None:
    kustomization = read(f"{folder}/kustomization.yaml")
    named = {*kustomization["resources"], *(patch["path"] for patch in kustomization.get("patches", []))}
    found = {path.name for path in manifests(folder)} - {"prometheus-adapter-values.yaml"}
    assert {name for name in named if not name.startswith("..")} == found


def test_the_gpu_patch_fits_the_deployment(server: dict[str, Any]) -> None:
    base, patch = read("base/deployment.yaml"), read("gpu/deployment.yaml")
    assert (base["kind"], base["metadata"]["name"]) == (patch["kind"], patch["metadata"]["name"])
    (patched,) = patch["spec"]["template"]["spec"]["containers"]
    assert patched["name"] == server["name"]
    read_configuration(environment={item["name"]: item["value"] for item in patched["env"]})


def test_the_settings_exist_and_let_nobody_in_without_a_key(settings: ServerSettings) -> None:
    settings.check_exposure()
    assert settings.api_keys is not None
    assert not settings.insecure


def test_there_is_time_to_drain_and_to_finish(pod: dict[str, Any], settings: ServerSettings) -> None:
    assert settings.drain_delay_s > 0
    assert pod["terminationGracePeriodSeconds"] > settings.drain_delay_s + settings.stop_timeout_s + 5


def test_probes_ask_for_paths_that_there_are(server: dict[str, Any], settings: ServerSettings) -> None:
    app = create_app(LocalizationService(ServerSettings()))
    paths = {getattr(route, "path", None) for route in app.routes}
    assert server["startupProbe"]["httpGet"]["path"] == server["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert server["livenessProbe"]["httpGet"]["path"] == "/livez", "a restart heals no missing index"
    ports = {port["name"]: port["containerPort"] for port in server["ports"]}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert server[probe]["httpGet"]["path"] in paths
        assert ports[server[probe]["httpGet"]["port"]] == settings.port
    assert ports["metrics"] == settings.metrics_port


def test_pods_are_not_root_and_write_to_tmp_only(pod: dict[str, Any], server: dict[str, Any]) -> None:
    assert pod["securityContext"]["runAsNonRoot"]
    assert f"--uid {pod['securityContext']['runAsUser']} " in (KUBERNETES.parents[1] / "Dockerfile").read_text()
    assert server["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    writable = {mount["mountPath"] for mount in server["volumeMounts"] if not mount.get("readOnly")}
    assert writable == {"/tmp"}
    assert "emptyDir" in volumes["tmp"]
    assert {mount["name"] for mount in server["volumeMounts"]} == set(volumes)


def test_what_is_mounted_is_what_is_set(server: dict[str, Any], settings: ServerSettings) -> None:
    mounted = [Path(mount["mountPath"]) for mount in server["volumeMounts"]]
    assert settings.indexes in mounted
    assert settings.api_keys is not None
    assert settings.api_keys.parent in mounted


def test_everything_selects_the_pods() -> None:
    labels = read("base/deployment.yaml")["spec"]["template"]["metadata"]["labels"]
    for selector in (
        read("base/deployment.yaml")["spec"]["selector"]["matchLabels"],
        read("base/service.yaml")["spec"]["selector"],
        read("base/disruption-budget.yaml")["spec"]["selector"]["matchLabels"],
        read("base/network-policy.yaml")["spec"]["podSelector"]["matchLabels"],
        read("monitoring/pod-monitor.yaml")["spec"]["selector"]["matchLabels"],
    ):
        assert selector.items() <= labels.items()


def test_the_autoscaler_s_metric_is_ours_and_below_the_limit(settings: ServerSettings) -> None:
    scaler = read("base/autoscaler.yaml")["spec"]
    (metric,) = scaler["metrics"]
    name = metric["pods"]["metric"]["name"]
    assert name in {definition.name for definition in DEFINITIONS if definition.kind == "gauge"}
    assert int(metric["pods"]["target"]["averageValue"]) < settings.max_waiting / 2
    (rule,) = read("monitoring/prometheus-adapter-values.yaml")["rules"]["custom"]
    assert rule["name"]["as"] == name
    assert rule["seriesQuery"].startswith(f"{name}{{")
    assert "replicas" not in read("base/deployment.yaml")["spec"], "it would undo the autoscaler at every apply"


def test_metrics_are_for_the_monitoring_namespace_only() -> None:
    rules = read("base/network-policy.yaml")["spec"]["ingress"]
    (metrics,) = [rule for rule in rules if {"port": "metrics"} in rule["ports"]]
    assert metrics["from"] == [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]
    assert [port["name"] for port in read("base/service.yaml")["spec"]["ports"]] == ["http"]
