"""A prior's filter lets everybody inside pass, and not many more."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.geo import GeoPrior, Position, from_local_metres, haversine_m
from retrieval.index.milvus.place_index import filter_of
from tests.retrieval.scattered import Scatter, scatters


def passes(text: str, lat: float, lon: float) -> bool:
    # The expressions are Python's, too.
    return not text or bool(eval(text, {"__builtins__": {}}, {"lat": lat, "lon": lon}))


@given(scatters, st.floats(-90, 90), st.floats(-180, 179.999), st.floats(-1, 7.3))
def test_everybody_inside_passes(scatter: Scatter, lat: float, lon: float, exponent: float) -> None:
    prior = GeoPrior(lat, lon, 10.0**exponent)
    text = filter_of(prior)
    there = scatter.positions()
    inside = haversine_m(lat, lon, *there) <= prior.radius_m
    assert all(passes(text, *one) for one in np.stack(there, axis=1)[inside])


CENTRES = [(48.0, 11.0), (0.0, 180.0 - 1e-9), (0.0, -180.0), (89.9, 3.0), (-60.0, 0.0)]


@given(st.sampled_from(CENTRES), st.floats(1, 5), st.floats(0, 6.2831))
def test_the_border_passes(centre: tuple[float, float], exponent: float, angle: float) -> None:
    radius = 10.0**exponent
    prior = GeoPrior(*centre, radius)
    at = from_local_metres(Position(*centre), radius * np.cos(angle), radius * np.sin(angle))
    assert passes(filter_of(prior), at.lat, at.lon)


@pytest.mark.parametrize(
    ("prior", "outside"),
    [
        (GeoPrior(48.0, 11.0, 1_000.0), [(48.01, 11.0), (48.0, 11.014), (47.99, 11.0), (48.0, -169.0)]),
        (GeoPrior(0.0, 179.999, 1_000.0), [(0.0, 179.98), (0.0, -179.98), (0.0, 0.0), (0.02, 180.0)]),
        (GeoPrior(89.999, 0.0, 1_000.0), [(89.9, 0.0), (-89.9, 0.0)]),
    ],
)
def test_what_is_far_does_not(prior: GeoPrior, outside: list[tuple[float, float]]) -> None:
    assert not any(passes(filter_of(prior), *one) for one in outside)


def test_the_whole_earth_needs_no_filter() -> None:
    assert filter_of(GeoPrior(10.0, 20.0, 21_000_000.0)) == ""


def test_small_numbers_are_written_without_exponents() -> None:
    assert "e" not in filter_of(GeoPrior(0.0, 0.0, 0.02)).replace("and", "")
