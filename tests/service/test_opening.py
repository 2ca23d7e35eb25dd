from types import SimpleNamespace
from typing import Any

import pytest

from retrieval.images import ImageLimits
from service.serving.loading import LocalizerParts
from service.settings import ServerSettings


@pytest.mark.parametrize(
    ("provider", "wanted", "batch"),
    [
        ("cpu", None, 8),
        ("openvino", None, 8),
        ("cuda", None, 32),
        ("tensorrt", None, 32),
        ("cpu", 32, 32),
        ("tensorrt", 4, 4),
    ],
)
def test_a_gpu_takes_larger_batches_unless_the_settings_say(provider: str, wanted: int | None, batch: int) -> None:
    settings = ServerSettings(max_batch=wanted)
    store: Any = None
    describer: Any = SimpleNamespace(provider=provider)
    assert LocalizerParts(settings, store, ImageLimits()).max_batch(describer) == batch
