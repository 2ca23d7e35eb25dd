"""A licence-free small town drawn from code: for the demo, for tests, and for load of any size."""

from sightfix.toy_town.camera import Camera
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
from sightfix.toy_town.town_map import draw_town_map

__all__ = [
    "ORIGIN",
    "Camera",
    "PlannedPhoto",
    "Survey",
    "ToyTown",
    "draw_town_map",
    "photographs",
    "plan_queries",
    "plan_references",
    "town_for",
    "write_survey",
]
