from pathlib import Path

import numpy as np
import pytest

from retrieval.errors import PlaceIndexError
from retrieval.verification.local_features import (
    NO_FEATURES,
    FeatureSettings,
    LocalFeatures,
    StoredFeatures,
    write_features,
)

SETTINGS = FeatureSettings()
COUNT = 150  # two whole record batches and a part of one


def made_up(seed: int) -> LocalFeatures:
    random = np.random.default_rng(seed)
    count = int(random.integers(0, 40))
    points = random.integers(0, 65_536, (count, 2)).astype(np.uint16)
    return LocalFeatures(points, random.integers(0, 256, (count, 128)).astype(np.uint8))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "features.arrow"
    write_features(path, (NO_FEATURES if seed == 70 else made_up(seed) for seed in range(COUNT)))
    return path


def test_what_was_written_is_read(path: Path) -> None:
    stored = StoredFeatures(path, SETTINGS, COUNT)
    for row in (149, 0, 63, 64, 127, 128, 1):
        found, wanted = stored.features(row), made_up(row)
        assert np.array_equal(found.points, wanted.points)
        assert np.array_equal(found.descriptors, wanted.descriptors)
        assert (found.points.dtype, found.descriptors.dtype) == (np.uint16, np.uint8)
    assert len(stored.features(70)) == 0


def test_a_row_that_is_not_there_is_our_mistake(path: Path) -> None:
    stored = StoredFeatures(path, SETTINGS, COUNT)
    for row in (-1, COUNT):
        with pytest.raises(IndexError):
            stored.features(row)


def test_they_are_written_as_they_come(tmp_path: Path) -> None:
    """Not gathered first: the file grows while features are still being made."""
    path, sizes = tmp_path / "features.arrow", []

    def features():
        for seed in range(300):
            sizes.append(path.stat().st_size)
            yield made_up(seed)

    written = write_features(path, features())
    assert 0.5 * written < sizes[-1] < written


@pytest.mark.parametrize("count", [64, 300])
def test_another_number_of_references_is_refused(path: Path, count: int) -> None:
    with pytest.raises(PlaceIndexError, match=f"not those of {count} references.*--local-features"):
        StoredFeatures(path, SETTINGS, count)


def test_a_file_that_ends_early_is_refused(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(PlaceIndexError, match=r"features\.arrow: the local features cannot be read"):
        StoredFeatures(path, SETTINGS, COUNT)


def test_an_empty_file_and_another_format_are_refused(path: Path) -> None:
    for content in (b"", b"not arrow at all"):
        path.write_bytes(content)
        with pytest.raises(PlaceIndexError, match="cannot be read"):
            StoredFeatures(path, SETTINGS, COUNT)


def test_offsets_that_lead_outside_are_refused_not_followed(path: Path) -> None:
    """Such as a memory-mapped index would meet, whose hashes nobody compared."""
    data = bytearray(path.read_bytes())
    offsets = np.cumsum([0] + [len(made_up(seed)) * 4 for seed in range(64)]).astype("<i4").tobytes()
    start = data.index(offsets)
    data[start + 4 * 5 : start + 4 * 7] = np.array([1 << 30, -5], "<i4").tobytes()
    path.write_bytes(bytes(data))
    stored = StoredFeatures(path, SETTINGS, COUNT)
    for row in (4, 5, 6):
        with pytest.raises(PlaceIndexError, match="cannot be read"):
            stored.features(row)
    assert len(stored.features(100)) == len(made_up(100))
