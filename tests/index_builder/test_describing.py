from pathlib import Path

import numpy as np
import pytest

from index_builder.describing import DescribeSettings, describe_photos, describe_references
from retrieval.bundle import Bundle
from retrieval.describer import Describer
from retrieval.errors import ReferenceDataError
from retrieval.images import ImageLimits, read_image
from tests.places import Places, make_places
from tests.retrieval.refusal import refused


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return make_places(tmp_path, 7)


def damage(places: Places, *numbers: int) -> None:
    for number in numbers:
        path = places.rows[number].path
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


UNREADABLE = "the image cannot be decoded (it ends too early)"
REMEDY = "Repair or remove what is named, or allow more with --max-unreadable (a job: max_unreadable)."


def paths(places: Places) -> list[str]:
    return [str(row.path) for row in places.rows]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 16])
@pytest.mark.parametrize("threads", [1, 4])
def test_rows_come_in_order_whatever_the_batches(
    places: Places, describer: Describer, bundle: Bundle, batch_size: int, threads: int
) -> None:
    settings = DescribeSettings(batch_size=batch_size, decode_threads=threads)
    done: list[int] = []
    described = describe_references(places, describer, settings, done.append)
    assert described.references == places.rows
    assert described.unreadable == []
    assert sum(done) == 7
    assert max(done) == min(batch_size, 7)
    alone = describer.describe([read_image(row.path, bundle.preprocessing) for row in places.rows])
    assert (described.descriptors * alone).sum(axis=1).min() > 0.99999


def test_batches_are_yielded_one_after_another(places: Places, describer: Describer) -> None:
    batches = list(describe_photos([paths(places)], describer, DescribeSettings(batch_size=3)))
    assert [len(batch.photos) for batch in batches] == [3, 3, 1]
    assert [batch.descriptors.shape[0] for batch in batches] == [3, 3, 1]


def test_only_a_few_batches_are_read_ahead(places: Places, describer: Describer) -> None:
    """A database of millions must not be in memory at once."""
    places.rows *= 20
    taken = 0

    def counted():
        nonlocal taken
        for row in places.rows:
            taken += 1
            yield str(row.path)

    batches = describe_photos([counted()], describer, DescribeSettings(batch_size=2))
    next(batches)
    assert taken <= 8
    batches.close()
    assert taken <= 8


def test_nothing_described_is_nothing(describer: Describer, bundle: Bundle) -> None:
    assert describe_references([], describer).descriptors.shape == (0, bundle.descriptor_dim)


def test_one_unreadable_photo_stops_the_work_and_is_named(places: Places, describer: Describer) -> None:
    damage(places, 4)
    text = f"{places.rows[4].path}: {UNREADABLE}. So far 1 photo is unreadable, none may be. {REMEDY}"
    with refused(ReferenceDataError, text, "too_many_unreadable"):
        describe_references(places, describer)


def test_several_unreadable_photos_are_named(places: Places, describer: Describer) -> None:
    damage(places, 2, 5, 6)
    others = "".join(f"; {places.rows[number].path}: {UNREADABLE}" for number in (5, 6))
    text = f"{places.rows[2].path}: {UNREADABLE}{others}. So far 3 photos are unreadable, none may be. {REMEDY}"
    with refused(ReferenceDataError, text, "too_many_unreadable"):
        describe_references(places, describer, DescribeSettings(batch_size=7))


@pytest.mark.parametrize("batch_size", [1, 3, 7])
def test_allowed_unreadable_photos_are_left_out_and_reported(
    places: Places, describer: Describer, batch_size: int
) -> None:
    damage(places, 0, 3)
    places.rows[5].path.unlink()
    done: list[int] = []
    settings = DescribeSettings(batch_size=batch_size, max_unreadable=3)
    described = describe_references(places, describer, settings, done.append)
    assert described.references == [places.rows[number] for number in (1, 2, 4, 6)]
    assert described.descriptors.shape[0] == 4
    assert [photo.path for photo in described.unreadable] == [str(places.rows[number].path) for number in (0, 3, 5)]
    assert [photo.code for photo in described.unreadable] == [
        "image_undecodable",
        "image_undecodable",
        "image_unreadable",
    ]
    assert sum(done) == 7


def test_more_unreadable_photos_than_allowed_stop_the_work(places: Places, describer: Describer) -> None:
    damage(places, 1, 3, 5)
    others = "".join(f"; {places.rows[number].path}: {UNREADABLE}" for number in (3, 5))
    text = f"{places.rows[1].path}: {UNREADABLE}{others}. So far 3 photos are unreadable, 2 may be. {REMEDY}"
    with refused(ReferenceDataError, text, "too_many_unreadable"):
        describe_references(places, describer, DescribeSettings(batch_size=1, max_unreadable=2))


def test_every_photo_unreadable_but_allowed_describes_nothing(places: Places, describer: Describer) -> None:
    damage(places, *range(7))
    described = describe_references(places, describer, DescribeSettings(batch_size=4, max_unreadable=7))
    assert described.references == []
    assert len(described.unreadable) == 7
    assert described.descriptors.dtype == np.float32


def test_limits_count_while_describing(places: Places, describer: Describer) -> None:
    settings = DescribeSettings(limits=ImageLimits(max_pixels=96 * 72 - 1))
    reason = f"the image has more than {96 * 72 - 1} pixels"
    text = f"{places.rows[0].path}: {reason}. So far 1 photo is unreadable, none may be. {REMEDY}"
    with refused(ReferenceDataError, text, "too_many_unreadable"):
        describe_references(places.rows[:1], describer, settings)
