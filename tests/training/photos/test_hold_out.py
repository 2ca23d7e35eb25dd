"""Photos set aside for validation: one end of the area, nothing of it trained on."""

from pathlib import Path

import numpy as np
import pytest

from retrieval.geo import Position, haversine_m
from retrieval.references.reference import Reference
from training.photos.hold_out import HoldOutError, hold_out, split_by_session


def street(count: int, metres: float, sessions: tuple[str | None, ...] = ("a", "b")) -> list[Reference]:
    """Photos along a parallel, their sessions in turn."""
    return [
        Reference(
            str(row),
            Path(f"{row}.jpg"),
            Position(48.0, 11.0 + row * metres / 74_400),
            session=sessions[row % len(sessions)],
        )
        for row in range(count)
    ]


def test_one_end_is_held_out_with_a_margin() -> None:
    held = hold_out(street(100, 10.0), share=0.2)
    validated = [int(row.id) for row in (*held.validation.database, *held.validation.queries)]
    trained = [int(row.id) for row in held.training]
    assert sorted(validated) == list(range(80, 100)) or sorted(validated) == list(range(20))
    near = min(validated) if max(validated) == 99 else max(validated)
    assert min(abs(row - near) for row in trained) * 10 >= 25
    assert len(trained) + held.margin + 20 == 100
    assert held.margin in (2, 3)


def test_no_trained_photo_lies_near_a_validated_one_on_scattered_places() -> None:
    rng = np.random.default_rng(0)
    spots = [Position(48 + a / 111_000, 11 + b / 74_400) for a, b in rng.uniform(0, 600, (300, 2))]
    references = [Reference(str(i), Path("x"), spot, session=f"s{i % 3}") for i, spot in enumerate(spots)]
    held = hold_out(references, share=0.25)
    for row in (*held.validation.database, *held.validation.queries):
        away = haversine_m(
            row.position.lat,
            row.position.lon,
            [r.position.lat for r in held.training],
            [r.position.lon for r in held.training],
        )
        assert away.min() > 25.0 - 1e-6


def test_sessions_stay_whole_and_the_largest_is_the_database() -> None:
    rows = [*street(10, 5.0, ("long",)), *street(4, 5.0, ("short",)), *street(3, 5.0, ("third",))]
    split = split_by_session(rows)
    assert {row.session for row in split.database} == {"long"}
    assert {row.session for row in split.queries} == {"short", "third"}
    assert not split.note


def test_two_equal_sessions_are_shared_out() -> None:
    split = split_by_session(street(8, 5.0, ("a", "b")))
    assert {row.session for row in split.database} == {"a"}
    assert len(split.queries) == 4


def test_with_one_session_every_second_photo_is_a_query_and_the_note_says_so() -> None:
    split = split_by_session(street(9, 5.0, ("only",)))
    assert [row.id for row in split.queries] == ["1", "3", "5", "7"]
    assert "recall is optimistic" in split.note


@pytest.mark.parametrize("share", [0.0, -0.1, 0.6])
def test_a_share_that_makes_no_sense(share: float) -> None:
    with pytest.raises(HoldOutError, match=r"Give more than 0 and at most 0\.5"):
        hold_out(street(100, 10.0), share)


def test_too_small_an_area() -> None:
    with pytest.raises(HoldOutError, match=r"of 12 photos .* trained on: too few, or too close together.*--hold-out 0"):
        hold_out(street(12, 1.0), 0.3)
