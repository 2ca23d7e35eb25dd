"""The error of a comparison."""

from retrieval.errors import SightfixError


class ComparisonError(SightfixError):
    """A comparison that cannot begin, or go on."""

    default_code = "comparison"
