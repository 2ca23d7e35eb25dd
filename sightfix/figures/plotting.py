"""What all figures share: matplotlib without pyplot (no window, no global state), colours, axes, and writing the file.

The colours are those of Okabe & Ito (2008), distinct for every kind of colour vision.
"""

import io
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from retrieval.artefact import replace_file
from retrieval.errors import MissingExtraError, StorageError

BLUE: Final = "#0072B2"
VERMILLION: Final = "#D55E00"
GREEN: Final = "#009E73"
PURPLE: Final = "#CC79A7"
ORANGE: Final = "#E69F00"
SKY_BLUE: Final = "#56B4E9"
BLACK: Final = "#000000"
GREY: Final = "#666666"
DASHED: Final = (0, (4, 3))


def matplotlib_figure() -> ModuleType:
    """The module ``matplotlib.figure``, imported when it is first wanted; ask for it before long work.

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


def write_figure(figure: Any, path: Path, dots_per_inch: int) -> None:
    """Write a figure in one step; the suffix of the path is the format.

    Raises:
        StorageError: the file cannot be written.
    """
    drawn = io.BytesIO()
    figure.savefig(drawn, format=path.suffix.lower().removeprefix("."), dpi=dots_per_inch)
    try:
        replace_file(path, drawn.getvalue())
    except OSError as error:
        raise StorageError(
            f"the figure cannot be written ({error.strerror})", where=str(path), remedy="Choose a writable folder"
        ) from error


def style_axes(axes: Any, *, grid: str = "both", without: tuple[str, ...] = ("top", "right")) -> None:
    """Draw a light grid behind the data, and leave out sides of the frame."""
    axes.grid(axis=grid, color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)
    for side in without:
        axes.spines[side].set_visible(False)


def shortened(name: str, length: int) -> str:
    """The end of a name that is longer than `length` characters."""
    return name if len(name) <= length else f"…{name[1 - length :]}"
