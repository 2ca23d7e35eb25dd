"""Read metrics as Prometheus does."""

from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from service.serving.localization import LocalizationService

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def parsed(text: str) -> Samples:
    """All samples of an exposition."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def samples_of(localization: LocalizationService) -> Samples:
    """All samples of a server's registry."""
    assert localization.observer.metrics is not None
    return parsed(generate_latest(localization.observer.metrics.registry).decode())


def value(samples: Samples, name: str, /, **labels: str) -> float:
    """One sample; 0 when there is none."""
    return samples.get((name, frozenset(labels.items())), 0.0)


def counted(localization: LocalizationService, before: Samples, name: str, /, **labels: str) -> float:
    """By how much a sample has grown."""
    return value(samples_of(localization), name, **labels) - value(before, name, **labels)
