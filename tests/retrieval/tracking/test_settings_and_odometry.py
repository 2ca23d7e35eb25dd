import math

import numpy as np
import pytest

from retrieval.errors import ParameterError
from retrieval.tracking import Displacement, Distance, Speed, TrackSettings
from retrieval.tracking.belief import Motion, MotionKernel


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("place_m", 0.0),
        ("score_scale", 0.0),
        ("score_scale", math.nan),
        ("match_std_m", -1.0),
        ("miss_share", 0.0),
        ("miss_share", 1.0),
        ("contrast", math.inf),
        ("jump_rate", -0.1),
        ("max_places", 0),
        ("max_places", 2.5),
        ("max_matches", True),
        ("speed_mps", "5"),
        ("speed_mps", 20.0),
    ],
)
def test_settings_outside_their_domain_are_refused(name: str, value: object) -> None:
    with pytest.raises(ParameterError, match=name):
        TrackSettings(**{name: value})


def test_whole_numbers_are_fine_where_real_ones_are_wanted() -> None:
    assert TrackSettings(speed_mps=5).speed_mps == 5


@pytest.mark.parametrize("make", [Speed, Distance, lambda m, s=1.0: Displacement(m, 0.0, s)])
def test_odometry_that_is_no_number_is_refused(make: type[Speed]) -> None:
    for bad in (math.nan, math.inf):
        with pytest.raises(ParameterError, match="odometry"):
            make(bad)
    for bad in (-1.0, math.nan):
        with pytest.raises(ParameterError, match="standard deviation"):
            make(1.0, bad)


def test_a_heading_that_is_no_number_is_refused() -> None:
    with pytest.raises(ParameterError, match="heading"):
        Speed(1.0, heading_deg=math.nan)
    with pytest.raises(ParameterError, match="heading_std_deg"):
        Distance(1.0, heading_deg=3.0, heading_std_deg=-1.0)


def test_speed_for_some_time_is_a_distance() -> None:
    assert Motion.of(2.0, Speed(-5.0, 0.5)) == Motion.of(2.0, Distance(10.0, 1.0)) == Motion(2.0, 10.0, 1.0)


def test_a_heading_makes_a_displacement_wider_across_than_along() -> None:
    motion = Motion.of(2.0, Speed(5.0, 0.5, heading_deg=90.0, heading_std_deg=math.degrees(0.3)))
    assert motion.mean_enu is not None
    np.testing.assert_allclose(motion.mean_enu, [10.0, 0.0], atol=1e-9)
    np.testing.assert_allclose(motion.covariance_enu, [[1.0, 0.0], [0.0, 9.0]], atol=1e-9)
    backwards = Motion.of(1.0, Distance(-4.0, heading_deg=0.0))
    assert backwards.mean_enu is not None
    np.testing.assert_allclose(backwards.mean_enu, [0.0, -4.0], atol=1e-9)


def test_motions_in_a_row_add_up_to_what_all_of_them_know() -> None:
    east = Motion.of(1.0, Displacement(3.0, 0.0, 1.0))
    both = east.then(Motion.of(1.0, Displacement(0.0, 4.0, 2.0)))
    assert (both.seconds, both.distance_m, both.variance_m2) == (2.0, 7.0, 5.0)
    assert both.mean_enu is not None
    assert both.mean_enu.tolist() == [3.0, 4.0]
    np.testing.assert_allclose(both.covariance_enu, np.eye(2) * 5.0)
    wheels = east.then(Motion.of(1.0, Distance(4.0, 2.0)))
    assert (wheels.distance_m, wheels.mean_enu) == (7.0, None)
    assert east.then(Motion.of(1.0, None)) == Motion(2.0)


def test_nothing_lies_beyond_the_reach() -> None:
    settings = TrackSettings()
    for odometry in (None, Distance(20.0, 3.0), Displacement(-20.0, 5.0, 3.0), Speed(9.0, heading_deg=10.0)):
        kernel = MotionKernel(Motion.of(2.0, odometry), 10.0, settings)
        angles = np.linspace(0, 2 * np.pi, 64)
        edge = kernel.reach_m * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        if odometry is not None:
            assert kernel.weights(edge, np.full(64, kernel.reach_m)).max() <= math.exp(-8.0) * 1.001
        assert kernel.weights(edge * 0, np.zeros(64)).max() <= 1.0
