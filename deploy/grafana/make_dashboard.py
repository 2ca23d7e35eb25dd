"""Write dashboard.json: ``python deploy/grafana/make_dashboard.py``. Panels are tables here, and JSON there."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

PAGE: Final = Path(__file__).with_name("dashboard.json")
_SOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}
_WHO: Final = 'job=~"$job", instance=~"$instance"'
_LOCALIZE: Final = 'route=~"(/v1)?/localize"'
_COLUMNS: Final = 24
_PROBES: Final = "/livez|/readyz|/healthz|/metrics|/v2/.*"


@dataclass(frozen=True)
class Panel:
    """One panel: title, unit, and PromQL by legend."""

    title: str
    unit: str
    queries: dict[str, str]
    kind: str = "timeseries"
    width: int = 8
    height: int = 8
    about: str = ""
    stacked: bool = False
    options: dict[str, Any] = field(default_factory=dict)


def _rate(metric: str, by: str = "", more: str = "") -> str:
    matchers = f"{_WHO}, {more}" if more else _WHO
    grouping = f" by ({by})" if by else ""
    return f"sum{grouping} (rate({metric}{{{matchers}}}[$__rate_interval]))"


def _quantile(share: float, metric: str, by: str = "", more: str = "") -> str:
    return f"histogram_quantile({share}, {_rate(f'{metric}_bucket', f'le, {by}' if by else 'le', more)})"


def _quantiles(metric: str, more: str = "") -> dict[str, str]:
    return {f"p{share * 100:.0f}": _quantile(share, metric, more=more) for share in (0.5, 0.95, 0.99)}


def _mean(metric: str, by: str = "") -> str:
    return f"{_rate(f'{metric}_sum', by)} / {_rate(f'{metric}_count', by)}"


def _now(metric: str) -> str:
    return f"{metric}{{{_WHO}}}"


ROWS: Final[dict[str, list[Panel]]] = {
    "Is it well?": [
        Panel("Ready", "none", {"{{instance}}": _now("sightfix_ready")}, "stat", 4, 5, options={"good": 1}),
        Panel("Canary", "none", {"{{instance}}": _now("sightfix_canary_ok")}, "stat", 4, 5, options={"good": 1}),
        Panel(
            "Since the last health probe",
            "s",
            {"{{instance}}": f"time() - {_now('sightfix_canary_timestamp_seconds')}"},
            "stat",
            4,
            5,
        ),
        Panel("Index version", "none", {"{{name}} {{version}}": _now("sightfix_index_info")}, "stat", 6, 5,
              options={"show": "name"}),
        Panel("References", "short", {"{{instance}}": _now("sightfix_index_vectors")}, "stat", 3, 5),
        Panel("Engine being built", "none", {"{{instance}}": _now("sightfix_engine_building")}, "stat", 3, 5),
    ],
    "Requests": [
        Panel(
            "Answers a second",
            "reqps",
            {"{{route}} {{status}}": _rate("sightfix_http_requests_total", "route, status", f'route!~"{_PROBES}"')},
            stacked=True,
        ),
        Panel(
            "Our failures, share of requests",
            "percentunit",
            {
                "500 and 504": _rate("sightfix_http_requests_total", more='status=~"5..", status!="503"')
                + " / "
                + _rate("sightfix_http_requests_total", more=f'route!~"{_PROBES}"')
            },
            about="503 is left out: a server that is loading or leaving says so.",
        ),
        Panel(
            "Photos refused or dropped a second",
            "reqps",
            {
                "refused: {{reason}}": _rate("sightfix_refused_total", "reason"),
                "dropped: {{reason}}": _rate("sightfix_dropped_total", "reason"),
            },
            about="queue and deadline are 429: the server is well and has too much to do.",
        ),
    ],
    "Time": [
        Panel("POST /localize", "s", _quantiles("sightfix_request_duration_seconds", _LOCALIZE)),
        Panel(
            "Mean time of each stage",
            "s",
            {"{{stage}}": _mean("sightfix_stage_duration_seconds", "stage")},
            stacked=True,
            about="describe and search are those of the whole batch that a photo was in.",
        ),
        Panel(
            "95th percentile of each stage",
            "s",
            {"{{stage}}": _quantile(0.95, "sightfix_stage_duration_seconds", "stage")},
        ),
    ],
    "Queue and batches": [
        Panel(
            "Photos that wait",
            "short",
            {
                "{{lane}}": f"sum by (lane) ({_now('sightfix_queue_depth')})",
                "limit": f"sum({_now('sightfix_queue_limit')})",
            },
            width=6,
        ),
        Panel("Photos in a batch", "short",
              {"mean": _mean("sightfix_batch_size"), "p95": _quantile(0.95, "sightfix_batch_size")}, width=6),
        Panel("Time of a batch", "s", _quantiles("sightfix_batch_duration_seconds"), width=6),
        Panel("Why batches were not larger", "percentunit",
              {"{{reason}}": f"{_rate('sightfix_batch_flush_total', 'reason')} / ignoring(reason) group_left "
                             f"{_rate('sightfix_batch_flush_total')}"},
              width=6, stacked=True,
              about="idle: no load; busy: batches grow with the load, as they should; full: at the limit."),
    ],
    "Answers": [
        Panel("What answers say", "percentunit",
              {"{{status}}": f"{_rate('sightfix_fixes_total', 'status')} / ignoring(status) group_left "
                             f"{_rate('sightfix_fixes_total')}"}, width=6, stacked=True),
        Panel("Score of the best match", "none",
              {"mean": _mean("sightfix_best_match_score"),
               "a tenth are below": _quantile(0.1, "sightfix_best_match_score")}, width=6,
              about="When it sinks over days, the place or the camera has changed: evaluate, and index anew."),
        Panel("Radius of the fix", "lengthm",
              {"median": _quantile(0.5, "sightfix_fix_radius_meters"),
               "p90": _quantile(0.9, "sightfix_fix_radius_meters")}, width=6),
        Panel("Photos that could not be decoded, a second", "reqps",
              {"{{code}}": _rate("sightfix_decode_failures_total", "code")}, width=6, stacked=True),
    ],
    "Index and process": [
        Panel("New versions", "short",
              {"{{result}}": f"sum by (result) (increase(sightfix_index_swap_total{{{_WHO}}}[$__rate_interval]))"},
              width=5),
        Panel("Memory", "bytes", {"{{instance}}": _now("process_resident_memory_bytes")}, width=5),
        Panel("Processor cores", "short",
              {"{{instance}}": f"rate(process_cpu_seconds_total{{{_WHO}}}[$__rate_interval])"}, width=5),
        Panel("In flight and open files", "short",
              {"requests {{instance}}": _now("sightfix_inflight_requests"),
               "files {{instance}}": _now("process_open_fds")}, width=5),
        Panel("Jobs", "short",
              {"{{kind}} {{state}}": f"sum by (kind, state) ({_now('sightfix_jobs')}) > 0"}, width=4),
    ],
}  # fmt: skip


def dashboard() -> str:
    """The whole dashboard."""
    panels: list[dict[str, Any]] = []
    top = 0
    for title, row in ROWS.items():
        panels.append({"id": len(panels) + 1, "type": "row", "title": title, "collapsed": False, "panels": [],
                       "gridPos": {"x": 0, "y": top, "w": _COLUMNS, "h": 1}})  # fmt: skip
        top, left = top + 1, 0
        for panel in row:
            panels.append(_panel(panel, len(panels) + 1, left, top))
            left += panel.width
        top += max(panel.height for panel in row)
    return json.dumps(
        {
            "uid": "sightfix",
            "title": "sightfix",
            "schemaVersion": 41,
            "editable": True,
            "refresh": "30s",
            "time": {"from": "now-3h", "to": "now"},
            "templating": {"list": _variables()},
            "panels": panels,
        },
        indent=1,
    )


def _panel(panel: Panel, number: int, left: int, top: int) -> dict[str, Any]:
    defaults: dict[str, Any] = {"unit": panel.unit, "min": 0}
    options: dict[str, Any] = {}
    if panel.kind == "stat":
        options = {"textMode": "name" if panel.options.get("show") == "name" else "auto", "colorMode": "background"}
        steps = [{"color": "text", "value": None}]
        if panel.options.get("good") == 1:
            steps = [{"color": "red", "value": None}, {"color": "green", "value": 1}]
        defaults["thresholds"] = {"mode": "absolute", "steps": steps}
    else:
        stacking = {"mode": "normal", "group": "A"} if panel.stacked else {"mode": "none"}
        defaults["custom"] = {"fillOpacity": 30 if panel.stacked else 5, "stacking": stacking, "showPoints": "never"}
        options = {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}}
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.about,
        "datasource": _SOURCE,
        "gridPos": {"x": left, "y": top, "w": panel.width, "h": panel.height},
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": options,
        "targets": [
            {"refId": chr(ord("A") + place), "datasource": _SOURCE, "expr": query, "legendFormat": legend}
            for place, (legend, query) in enumerate(panel.queries.items())
        ],
    }


def _variables() -> list[dict[str, Any]]:
    several = {"multi": True, "includeAll": True, "allValue": ".*", "current": {"text": "All", "value": "$__all"}}
    return [
        {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus",
         "current": {"text": "Prometheus", "value": "prometheus"}},
        {"name": "job", "label": "Job", "type": "query", "datasource": _SOURCE, "refresh": 2, **several,
         "query": "label_values(sightfix_build_info, job)"},
        {"name": "instance", "label": "Server", "type": "query", "datasource": _SOURCE, "refresh": 2, **several,
         "query": 'label_values(sightfix_build_info{job=~"$job"}, instance)'},
    ]  # fmt: skip


if __name__ == "__main__":
    PAGE.write_text(dashboard() + "\n", encoding="utf-8")
