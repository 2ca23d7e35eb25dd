"""Tracking: the frames of a moving camera, smoothed by a Bayes filter over reference places."""

from retrieval.tracking.odometry import Displacement, Distance, Odometry, Speed
from retrieval.tracking.places import PlaceMap
from retrieval.tracking.settings import TrackSettings
from retrieval.tracking.track import Track
from retrieval.tracking.tracked_fix import TrackedFix

__all__ = ["Displacement", "Distance", "Odometry", "PlaceMap", "Speed", "Track", "TrackSettings", "TrackedFix"]
