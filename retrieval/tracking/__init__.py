"""Tracking: the frames of a moving camera, smoothed by a Bayes filter over reference places."""

from retrieval.tracking.places import PlaceMap
from retrieval.tracking.settings import Displacement, Distance, Odometry, Speed, TrackSettings
from retrieval.tracking.track import Track, TrackedFix

__all__ = ["Displacement", "Distance", "Odometry", "PlaceMap", "Speed", "Track", "TrackSettings", "TrackedFix"]
