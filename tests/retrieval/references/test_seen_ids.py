"""The memory of ids."""

from hypothesis import given
from hypothesis import strategies as st

from retrieval.references.reader import SeenIds


@given(st.lists(st.text(max_size=2), max_size=60))
def test_it_answers_as_a_set_would(ids: list[str]) -> None:
    seen, real = SeenIds(), set[str]()
    for reference_id in ids:
        assert seen.add(reference_id) == (reference_id not in real)
        real.add(reference_id)
    assert len(seen) == len(real)


def test_it_grows() -> None:
    seen = SeenIds()
    assert all(seen.add(str(number)) for number in range(20_000))
    assert not any(seen.add(str(number)) for number in range(20_000))
    assert len(seen) == 20_000
