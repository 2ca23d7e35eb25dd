"""Heat maps laid over the photos they are of: activation and match, of one photo or of a pair.

Colours are matplotlib's inferno, whose steps look equal to the eye, over the photo in grey.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from retrieval.errors import ParameterError
from retrieval.images import RgbImage
from sightfix.figures.plotting import GREY, matplotlib_figure, shortened, write_figure

FIGURE_SUFFIXES: Final = (".png", ".svg", ".pdf", ".jpg", ".jpeg")
_COLOUR_MAP: Final = "inferno"
_CELL_INCHES: Final = 3.1  # a side of a square panel
_LEAST_CELL_INCHES: Final = 2.3
_GAP, _MARGIN = 0.14, 0.10  # inches, as those below
_HEAD, _CAPTION, _FOOT = 0.92, 0.44, 0.62  # over the first row, under each row, under the last caption
_CHARACTERS_AN_INCH: Final = 13.0
_DOTS_PER_INCH: Final = 150
_LEAST_COVER, _MOST_COVER = 0.30, 0.75  # how much of the grey photo the coldest and the hottest colour hide
_LUMA: Final = (0.299, 0.587, 0.114)  # ITU-R BT.601
_OPPOSES_FROM: Final = 0.0005  # what three decimals can show


@dataclass(frozen=True, slots=True)
class ExplainedPhoto:
    """A photo and its heat maps.

    Attributes:
        name: for people.
        view: (H, W, 3) uint8 RGB, as the model sees it.
        activation: (h, w) float32, not negative.
        match: (h, w) float32, signed contributions to the score.
        activation_share, match_share: of the energy, in the top 10 % of the locations; NaN where there is no energy.
    """

    name: str
    view: RgbImage
    activation: NDArray[np.float32]
    match: NDArray[np.float32]
    activation_share: float
    match_share: float


def check_figure_path(path: Path) -> None:
    """Refuse a file that could not be drawn into, before long work.

    Raises:
        MissingExtraError: matplotlib is not installed.
        ParameterError: another suffix than PNG, SVG, PDF or JPEG, or no such folder.
    """
    matplotlib_figure()
    if path.suffix.lower() not in FIGURE_SUFFIXES:
        raise ParameterError(
            f"{path.name} is not a figure that can be drawn", where=str(path), remedy="Give .png, .svg, .pdf or .jpg"
        )
    if not path.parent.is_dir():
        raise ParameterError(
            f"the folder {path.parent} does not exist", where=str(path), remedy="Make it, or choose another"
        )
    if path.is_dir():
        raise ParameterError("this is a folder", where=str(path), remedy="Give the name of a file")


def write_heat_map_figure(photos: Sequence[ExplainedPhoto], score: float | None, model: str, path: Path) -> None:
    """Draw one photo or a pair and write the figure in one step; the path's suffix says in which format.

    Args:
        photos: one, or two that are compared.
        score: of the pair; None for a photo alone, whose match map is of its own descriptor.
        model: which, for people.
        path: the file.

    Raises:
        MissingExtraError, ParameterError: as `check_figure_path`.
        StorageError: the file cannot be written.
    """
    check_figure_path(path)
    write_figure(heat_map_figure(photos, score, model), path, _DOTS_PER_INCH)


def heat_map_figure(photos: Sequence[ExplainedPhoto], score: float | None, model: str) -> Any:
    """A row a photo: the photo as the model sees it, its activation, its match map.

    Args:
        photos, score, model: as `write_heat_map_figure`.

    Returns:
        A matplotlib figure.
    """
    cell = _cell_inches(photos[0].view)
    size = (3 * cell[0] + 2 * _GAP + 2 * _MARGIN, len(photos) * (cell[1] + _CAPTION) + _HEAD + _FOOT)
    figure = matplotlib_figure().Figure(figsize=size)
    grid = [[_axes(figure, cell, row, column) for column in range(3)] for row in range(len(photos))]
    heads = ("photo, as the model sees it", "activation", "match" if score is not None else "own descriptor")
    for axis, head in zip(grid[0], heads, strict=True):
        axis.set_title(head, fontsize=11, fontweight="bold")
    activation_limit = max(_largest(photo.activation) for photo in photos)
    match_limit = max(_largest(photo.match) for photo in photos)
    for row, photo in zip(grid, photos, strict=True):
        _panel(row[0], photo.view, shortened(photo.name, int(cell[0] * _CHARACTERS_AN_INCH)))
        _panel(row[1], overlay(photo.view, photo.activation, activation_limit), _share(photo.activation_share))
        caption = _share(photo.match_share) + _opposition(photo.match)
        _panel(row[2], overlay(photo.view, photo.match, match_limit), caption)
    _colour_bar(figure, grid[-1][1], activation_limit, "L2 norm of the features")
    part = "contribution to the score" if score is not None else "share of the descriptor"
    _colour_bar(figure, grid[-1][2], match_limit, f"{part}, each location")
    title = (
        "Where the descriptor looks"
        if score is None
        else f"Where the match comes from: score {score:.3f}".replace("-", "−")
    )
    figure.text(0.5, 1 - 0.12 / size[1], title, ha="center", va="top", fontsize=13)
    figure.text(0.5, 1 - 0.40 / size[1], model, ha="center", va="top", fontsize=9, color=GREY, parse_math=False)
    return figure


def overlay(view: RgbImage, heat: NDArray[np.float32], limit: float) -> RgbImage:
    """Lay a heat map over a photo; the hotter, the less of the photo shines through.

    Args:
        view: (H, W, 3) uint8 RGB.
        heat: (h, w), enlarged bilinearly; below zero is drawn as zero.
        limit: the value of the hottest colour.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    matplotlib_figure()
    import matplotlib

    height, width, _ = view.shape
    small = Image.fromarray(np.ascontiguousarray(heat, np.float32))
    enlarged = np.asarray(small.resize((width, height), Image.Resampling.BILINEAR), np.float64)
    level = np.clip(np.nan_to_num(enlarged) / limit, 0.0, 1.0)
    colours = matplotlib.colormaps[_COLOUR_MAP](level)[..., :3] * 255.0
    grey = (view @ np.array(_LUMA))[..., None]
    cover = (_LEAST_COVER + (_MOST_COVER - _LEAST_COVER) * level)[..., None]
    return np.asarray(np.rint(cover * colours + (1.0 - cover) * grey), np.uint8)


def _largest(heat: NDArray[np.float32]) -> float:
    largest = float(np.nan_to_num(heat).max())
    return largest if largest > 0 else 1.0


def _cell_inches(view: RgbImage) -> tuple[float, float]:
    """Width and height of a panel: the view's own proportions, about the same area for all, and room for words."""
    height, width, _ = view.shape
    wide = max(_LEAST_CELL_INCHES, _CELL_INCHES * (width / height) ** 0.5)
    return wide, wide * height / width


def _axes(figure: Any, cell: tuple[float, float], row: int, column: int) -> Any:
    width, height = figure.get_size_inches()
    left = _MARGIN + column * (cell[0] + _GAP)
    bottom = height - _HEAD - (row + 1) * cell[1] - row * _CAPTION
    return figure.add_axes((left / width, bottom / height, cell[0] / width, cell[1] / height))


def _panel(axis: Any, image: RgbImage, caption: str) -> None:
    axis.imshow(image, interpolation="antialiased")
    axis.set_xticks([])
    axis.set_yticks([])
    axis.set_xlabel(caption, fontsize=9, parse_math=False)  # file names may hold dollar signs
    for spine in axis.spines.values():
        spine.set_visible(False)


def _colour_bar(figure: Any, above: Any, limit: float, label: str) -> None:
    """Under the lowest panel of a column, which shares its scale with those over it."""
    import matplotlib.cm
    import matplotlib.colors

    height = figure.get_size_inches()[1]
    place = above.get_position()
    inside = 0.05 * place.width
    bar_axes = figure.add_axes((place.x0 + inside, 0.47 / height, place.width - 2 * inside, 0.11 / height))
    colours = matplotlib.cm.ScalarMappable(matplotlib.colors.Normalize(0.0, limit), _COLOUR_MAP)
    bar = figure.colorbar(colours, cax=bar_axes, orientation="horizontal")
    bar.set_label(label, fontsize=9)
    bar_axes.tick_params(labelsize=8)
    bar_axes.locator_params(nbins=4)
    bar_axes.xaxis.set_major_formatter("{x:g}")
    bar.outline.set_visible(False)


def _share(share: float) -> str:
    return f"top 10 %: {share * 100:.0f} % of the energy" if np.isfinite(share) else "no energy"


def _opposition(match: NDArray[np.float32]) -> str:
    against = float(match.clip(max=0.0).sum())
    return f"\nopposes: −{-against:.3f}" if against <= -_OPPOSES_FROM else ""
