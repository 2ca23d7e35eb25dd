"""Read metrics as Prometheus does."""

from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from service.serving.live_localizer import LiveLocalizer

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def parsed(text: str) -> Samples:
    """All samples of an exposition."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def samples_of(live: LiveLocalizer) -> Samples:
    """All samples of a live localizer's registry."""
    assert live.observer.metrics is not None
    return parsed(generate_latest(live.observer.metrics.registry).decode())


def value(samples: Samples, name: str, /, **labels: str) -> float:
    """One sample; 0 when there is none."""
    return samples.get((name, frozenset(labels.items())), 0.0)


def counted(live: LiveLocalizer, before: Samples, name: str, /, **labels: str) -> float:
    """By how much a sample has grown."""
    return value(samples_of(live), name, **labels) - value(before, name, **labels)
