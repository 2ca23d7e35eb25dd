"""How many cases Hypothesis makes of a property: few at each commit, many at night (`HYPOTHESIS_PROFILE=nightly`)."""

import os
from typing import Final

from hypothesis import settings

NIGHTLY: Final = os.environ.get("HYPOTHESIS_PROFILE", "ci") == "nightly"
_TIMES_AT_NIGHT: Final = 10


def load_profile() -> None:
    """Choose the profile. No deadline for a case: a busy machine is no failure."""
    settings.register_profile("ci", deadline=None, max_examples=50, derandomize=True, database=None)
    settings.register_profile("nightly", deadline=None, max_examples=50 * _TIMES_AT_NIGHT)
    settings.load_profile("nightly" if NIGHTLY else "ci")


def examples(count: int) -> int:
    """The `max_examples` of a property whose cases are dear or cheap: `count` at each commit, more at night."""
    return count * _TIMES_AT_NIGHT if NIGHTLY else count
