"""A licence-free small town drawn from code: for the demo, for tests, and for load of any size."""

from sightfix.toy_town.camera import Camera
from sightfix.toy_town.plan import LANE_M, generator
from sightfix.toy_town.survey import (
    PlannedPhoto,
    Survey,
    photographs,
    plan_queries,
    plan_references,
    town_for,
    write_survey,
)
from sightfix.toy_town.town import ORIGIN, ToyTown

__all__ = [
    "LANE_M",
    "ORIGIN",
    "Camera",
    "PlannedPhoto",
    "Survey",
    "ToyTown",
    "generator",
    "photographs",
    "plan_queries",
    "plan_references",
    "town_for",
    "write_survey",
]
