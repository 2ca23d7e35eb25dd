from pathlib import Path

import numpy as np
import pytest

from export import photos
from export.photos import describe_photos, evenly, read_photos
from retrieval.errors import ImageError
from retrieval.images import Preprocessing, read_image
from tests.places import make_places

SIZE = Preprocessing(height=24, width=32)


def test_photos_come_in_order_and_in_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(photos, "_BATCH", 3)
    rows = make_places(tmp_path, 7).rows
    parts = list(read_photos(rows, SIZE))
    assert [len(part) for part in parts] == [3, 3, 1]
    for row, image in zip(rows, np.concatenate(parts), strict=True):
        np.testing.assert_array_equal(image, read_image(row.path, SIZE))


def test_each_describer_sees_every_photo_once(tmp_path: Path) -> None:
    rows = make_places(tmp_path, 40).rows
    done: list[int] = []
    means = describe_photos(
        rows,
        SIZE,
        {
            "mean": lambda images: images.mean(axis=(1, 2)).astype(np.float32),
            "first": lambda images: images[:, 0, 0].astype(np.float32),
        },
        done.append,
    )
    assert done == [32, 8]
    images = np.concatenate(list(read_photos(rows, SIZE)))
    np.testing.assert_allclose(means["mean"], images.mean(axis=(1, 2)), rtol=1e-6)
    np.testing.assert_array_equal(means["first"], images[:, 0, 0])


def test_an_unreadable_photo_is_named(tmp_path: Path) -> None:
    rows = make_places(tmp_path, 3).rows
    rows[1].path.write_bytes(rows[1].path.read_bytes()[:300])
    with pytest.raises(ImageError, match=r"0001\.jpg"):
        list(read_photos(rows, SIZE))


@pytest.mark.parametrize(("count", "expected"), [(3, [0, 4, 9]), (10, list(range(10))), (99, list(range(10)))])
def test_evenly(tmp_path: Path, count: int, expected: list[int]) -> None:
    rows = make_places(tmp_path, 10).rows
    assert evenly(rows, count) == [rows[index] for index in expected]
