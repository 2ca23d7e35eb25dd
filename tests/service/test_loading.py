import pytest

from service.serving.loading import batch_limit
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
    assert batch_limit(settings, provider) == batch
