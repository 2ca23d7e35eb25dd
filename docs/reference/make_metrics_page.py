"""Write metrics.md from the definitions of the metrics: ``python docs/reference/make_metrics_page.py``."""

from pathlib import Path

from service.observing.definitions import DEFINITIONS, Definition

PAGE = Path(__file__).with_name("metrics.md")
_HEAD = """# Metrics

What a server shows to Prometheus, in base units (seconds, bytes, metres). Where it is shown, and what to watch:
[Operate](../how-to/operate.md). Each server counts from 0 when it starts. No label holds what a client chose, so the
number of series is bounded.

Besides these there are `process_resident_memory_bytes`, `process_cpu_seconds_total`, `process_open_fds` and the others
that every Prometheus client has.
"""


def page() -> str:
    """The whole page."""
    return "\n".join([_HEAD, *map(_section, DEFINITIONS)])


def _section(definition: Definition) -> str:
    lines = [f"## `{definition.name}`", "", f"{definition.kind.capitalize()}. {definition.help}.", ""]
    if definition.labels:
        lines += ["| label | value |", "|---|---|"]
        lines += [f"| `{name}` | {meaning} |" for name, meaning in definition.labels]
        lines.append("")
    if definition.buckets:
        bounds = ", ".join(f"{bound:g}" for bound in definition.buckets)
        lines += [f"Buckets: {bounds}. Why: {definition.why}.", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
