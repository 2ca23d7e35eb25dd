"""The motion model: how likely is it to have come from one place to another in the time since.

Probabilistic Robotics (Thrun, Burgard & Fox 2005), chapter 5 (odometry as noisy measurement of displacement) and
section 8.2 (what coarse cells do to a motion model). Here the cells are places some metres apart, so every displacement
between two places is known only up to where in its place the camera stood: that variance is added to the odometry's.
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from retrieval.geo import Float64Array
from retrieval.tracking.odometry import Displacement, Distance, Odometry
from retrieval.tracking.settings import TrackSettings

# Beyond this many σ a displacement has no weight.
CUT_SIGMAS = 4.0


@dataclass(frozen=True, slots=True)
class Motion:
    """What is known about the motion of some time.

    Attributes:
        seconds: how long.
        distance_m: travelled, or None where that is not known.
        variance_m2: of the distance.
        mean_enu: displacement (2,) east and north in metres, or None where no direction is known.
        covariance_enu: (2, 2) of the displacement, m².
    """

    seconds: float
    distance_m: float | None = None
    variance_m2: float = 0.0
    mean_enu: Float64Array | None = None
    covariance_enu: Float64Array | None = None

    @classmethod
    def of(cls, seconds: float, odometry: Odometry | None) -> "Motion":
        """The motion of one interval.

        Args:
            seconds: since the last frame, not negative.
            odometry: what the robot tells about the same interval.
        """
        if odometry is None:
            return cls(seconds)
        if isinstance(odometry, Displacement):
            mean = np.array([odometry.east_m, odometry.north_m])
            variance = odometry.std_m**2
            return cls(seconds, float(np.hypot(*mean)), variance, mean, np.eye(2) * variance)
        if isinstance(odometry, Distance):
            metres, std = odometry.metres, odometry.std_m
        else:
            metres, std = odometry.mps * seconds, odometry.std_mps * seconds
        if odometry.heading_deg is None:
            return cls(seconds, abs(metres), std**2)
        heading = math.radians(odometry.heading_deg)
        along = np.array([math.sin(heading), math.cos(heading)])
        across = np.array([along[1], -along[0]])
        sideways = metres * math.radians(odometry.heading_std_deg)
        covariance = std**2 * np.outer(along, along) + sideways**2 * np.outer(across, across)
        return cls(seconds, abs(metres), std**2, metres * along, covariance)

    def then(self, later: "Motion") -> "Motion":
        """Both motions, one after the other; what only one of them knows is forgotten."""
        seconds = self.seconds + later.seconds
        if self.distance_m is None or later.distance_m is None:
            return Motion(seconds)
        together = Motion(seconds, self.distance_m + later.distance_m, self.variance_m2 + later.variance_m2)
        if self.mean_enu is None or later.mean_enu is None:
            return together
        assert self.covariance_enu is not None
        assert later.covariance_enu is not None
        return replace(
            together,
            mean_enu=self.mean_enu + later.mean_enu,
            covariance_enu=self.covariance_enu + later.covariance_enu,
        )


@dataclass(frozen=True, slots=True)
class MotionKernel:
    """Weights of displacements between places, 1 for the likeliest.

    Attributes:
        motion: what is known.
        spread_m2: variance per axis of where a camera stands between two places, m².
        settings: speeds, where no distance is known.
    """

    motion: Motion
    spread_m2: float
    settings: TrackSettings

    @property
    def reach_m(self) -> float:
        """No displacement beyond it has weight."""
        motion, place = self.motion, math.sqrt(self.spread_m2)
        if motion.distance_m is None:
            # The bound of speed, and the place's own size on top: its photos lie anywhere in it.
            return self.settings.max_speed_mps * motion.seconds + CUT_SIGMAS * place
        if motion.mean_enu is None or motion.covariance_enu is None:
            return motion.distance_m + CUT_SIGMAS * math.sqrt(motion.variance_m2 + self.spread_m2)
        widest = float(np.linalg.eigvalsh(motion.covariance_enu)[-1])
        return float(np.hypot(*motion.mean_enu)) + CUT_SIGMAS * math.sqrt(max(widest, 0.0) + self.spread_m2)

    def weights(self, east_north: Float64Array, distance_m: Float64Array) -> Float64Array:
        """How likely displacements are beside the likeliest.

        Args:
            east_north: (N, 2) metres from the earlier to the later place.
            distance_m: (N,) their lengths.

        Returns:
            (N,) float64 in [0, 1].
        """
        motion = self.motion
        if motion.distance_m is None:
            variance = (self.settings.speed_mps * motion.seconds) ** 2 + self.spread_m2
            return np.asarray(np.exp(-(distance_m**2) / (2.0 * variance)))
        if motion.mean_enu is None or motion.covariance_enu is None:
            variance = motion.variance_m2 + self.spread_m2
            return np.asarray(np.exp(-((distance_m - motion.distance_m) ** 2) / (2.0 * variance)))
        precision = np.linalg.inv(motion.covariance_enu + np.eye(2) * self.spread_m2)
        away = east_north - motion.mean_enu
        return np.asarray(np.exp(-0.5 * np.einsum("ni,ij,nj->n", away, precision, away)))
