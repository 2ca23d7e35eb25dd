"""matplotlib without pyplot: no window, no global state, and no import before a figure is wanted."""

from types import ModuleType

from retrieval.errors import MissingExtraError


def matplotlib_figure() -> ModuleType:
    """The module ``matplotlib.figure``. Ask for it before long work, so that it is not missed at its end.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        import matplotlib.figure
    except ImportError as error:
        raise MissingExtraError(
            "figures need matplotlib, which is not installed", remedy="Run: pip install 'sightfix[figures]'"
        ) from error
    module: ModuleType = matplotlib.figure
    return module
