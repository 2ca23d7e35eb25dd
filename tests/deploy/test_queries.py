"""Dashboard and alerts: every query is PromQL, and asks for metrics and labels that a server shows."""

import json
import re
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml

from service.observing.definitions import DEFINITIONS
from service.serving.localization import LocalizationService
from service.settings import ServerSettings

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
DASHBOARD = DEPLOY / "grafana" / "dashboard.json"
# What Prometheus adds to every series.
OF_SCRAPES = {"job", "instance", "namespace", "pod"}


def dashboard() -> dict[str, Any]:
    return json.loads(DASHBOARD.read_text())


def panels() -> list[dict[str, Any]]:
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def alerts() -> list[dict[str, Any]]:
    groups = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def queries() -> Iterator[Any]:
    for panel in panels():
        for target in panel["targets"]:
            yield pytest.param(target["expr"], id=f"{panel['title']}-{target['refId']}")
    for alert in alerts():
        yield pytest.param(alert["expr"], id=alert["alert"])
    for variable in dashboard()["templating"]["list"]:
        found = re.match(r"label_values\((.+), \w+\)$", variable["query"])
        if found:
            yield pytest.param(found.group(1), id=variable["name"])
    (rule,) = yaml.safe_load((DEPLOY / "kubernetes/monitoring/prometheus-adapter-values.yaml").read_text())["rules"][
        "custom"
    ]
    yield pytest.param(rule["seriesQuery"], id="adapter-series")
    query = rule["metricsQuery"].replace("<<.LabelMatchers>>", 'pod="a"').replace("<<.GroupBy>>", "pod")
    yield pytest.param(query, id="adapter-metric")


@pytest.fixture(scope="module")
def series() -> dict[str, set[str]]:
    """Labels by the name of every series that a server shows, or Prometheus itself makes."""
    metrics = LocalizationService(ServerSettings()).observer.metrics
    assert metrics is not None
    shown = {"up": set[str]()}
    for definition in DEFINITIONS:
        labels = set(definition.label_names)
        shown[definition.name] = labels
        if definition.kind == "histogram":
            del shown[definition.name]
            shown |= {f"{definition.name}_{end}": labels for end in ("sum", "count")}
            shown[f"{definition.name}_bucket"] = labels | {"le"}
    process = {sample.name for family in metrics.registry.collect() for sample in family.samples}
    return shown | {name: set() for name in process if name.startswith("process_")}


def selectors(query: str) -> list[tuple[str, set[str]]]:
    """Name and matched labels of every selector in a query."""
    found: list[tuple[str, set[str]]] = []

    def visit(node: Any) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            found.append((node.name, {matcher.name for matcher in node.matchers.matchers}))

    promql_parser.walk(_plain(query), visit)
    return found


def _plain(query: str) -> Any:
    return promql_parser.parse(query.replace("$__rate_interval", "5m"))


@pytest.mark.parametrize("query", list(queries()))
def test_a_query_asks_for_what_there_is(query: str, series: dict[str, set[str]]) -> None:
    found = selectors(query)
    assert found, "a query without a metric"
    labels = set(OF_SCRAPES)
    for name, matched in found:
        assert name in series, f"{name} is no series of a server"
        assert matched <= series[name] | OF_SCRAPES, f"{name} has no label {matched - series[name]}"
        labels |= series[name]
    for grouping in re.findall(r"\b(?:by|without|on|ignoring)\s*\(([^)]*)\)", query):
        assert {label.strip() for label in grouping.split(",")} <= labels


def test_the_test_would_find_a_name_that_is_wrong(series: dict[str, set[str]]) -> None:
    assert selectors('sum(rate(sightfix_no_such_total{a=~"b"}[5m])) / sum(up)') == [
        ("sightfix_no_such_total", {"a"}),
        ("up", set()),
    ]
    assert "sightfix_no_such_total" not in series
    with pytest.raises(ValueError, match=r".+"):
        _plain("sum(rate(")


def test_legends_name_labels_that_the_query_keeps() -> None:
    for panel in panels():
        for target in panel["targets"]:
            for label in re.findall(r"{{(\w+)}}", target["legendFormat"]):
                grouped = re.search(r"\bby \(([^)]*)\)", target["expr"])
                kept = set(grouped.group(1).split(", ")) if grouped else {*OF_SCRAPES, "name", "version"}
                assert label in kept, f"{panel['title']}: {label}"


def test_panels_neither_overlap_nor_share_numbers() -> None:
    taken: set[tuple[int, int]] = set()
    numbers = [panel["id"] for panel in dashboard()["panels"]]
    assert len(numbers) == len(set(numbers))
    for panel in dashboard()["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells


def test_the_dashboard_is_current() -> None:
    made = runpy.run_path(str(DEPLOY / "grafana" / "make_dashboard.py"))["dashboard"]()
    assert made + "\n" == DASHBOARD.read_text(), "run: python deploy/grafana/make_dashboard.py"


def test_alerts_say_what_they_mean() -> None:
    names = [alert["alert"] for alert in alerts()]
    assert len(names) == len(set(names)) >= 9
    for alert in alerts():
        assert alert["labels"]["severity"] in ("page", "ticket")
        assert alert["annotations"]["summary"]
        assert alert["annotations"]["description"].strip().endswith(".")


def test_grafana_finds_its_source_and_its_dashboard() -> None:
    provisioning = DEPLOY / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text())["datasources"]
    variable = dashboard()["templating"]["list"][0]
    assert (source["type"], source["uid"]) == (variable["query"], variable["current"]["value"])
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "sightfix.yaml").read_text())["providers"]
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["grafana"]
    assert any(volume.split(":")[1].startswith(provider["options"]["path"]) for volume in compose["volumes"])
