"""The heat map figure: what it says, and what it draws over the photo."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from retrieval.errors import ParameterError, StorageError
from sightfix.figures.heat_map import ExplainedPhoto, check_figure_path, heat_map_figure, overlay, write_heat_map_figure

HEAT = np.array([[0.0, 0.1, 0.4], [0.2, -0.05, 0.05]], np.float32)


def explained(name: str = "a.jpg", match: np.ndarray = HEAT, size: tuple[int, int] = (64, 96)) -> ExplainedPhoto:
    view = np.full((*size, 3), 128, np.uint8)
    return ExplainedPhoto(name, view, np.abs(HEAT) * 40, match, 0.171, 0.2541)


def words(figure: object) -> list[str]:
    return [text.get_text() for text in figure.texts]  # type: ignore[attr-defined]


def test_a_pair_says_score_model_and_shares() -> None:
    figure = heat_map_figure([explained(), explained("b.jpg", HEAT.clip(min=0))], 0.7164, "a net, never trained")
    assert words(figure) == ["Where the match comes from: score 0.716", "a net, never trained"]
    panels, bars = figure.axes[:6], figure.axes[6:]
    assert [axis.get_title() for axis in panels[:3]] == ["photo, as the model sees it", "activation", "match"]
    assert [axis.get_xlabel() for axis in panels] == [
        *("a.jpg", "top 10 %: 17 % of the energy", "top 10 %: 25 % of the energy\nopposes: −0.050"),
        *("b.jpg", "top 10 %: 17 % of the energy", "top 10 %: 25 % of the energy"),
    ]
    assert [axis.get_xlabel() for axis in bars] == [
        "L2 norm of the features",
        "contribution to the score, each location",
    ]
    assert [axis.get_xlim()[1] for axis in bars] == pytest.approx([16.0, 0.4])


def test_a_photo_alone_is_explained_by_its_own_descriptor() -> None:
    figure = heat_map_figure([explained()], None, "a net")
    assert words(figure)[0] == "Where the descriptor looks"
    assert figure.axes[2].get_title() == "own descriptor"
    assert figure.axes[4].get_xlabel() == "share of the descriptor, each location"


@pytest.mark.parametrize("size", [(64, 96), (128, 64), (64, 64)])
def test_panels_have_the_proportions_of_the_view(size: tuple[int, int]) -> None:
    figure = heat_map_figure([explained(size=size), explained(size=size)], 0.5, "a net")
    width, height = figure.get_size_inches()
    for axis in figure.axes[:6]:
        box = axis.get_position()
        assert (box.height * height) / (box.width * width) == pytest.approx(size[0] / size[1])
        assert 0 < box.x0 < box.x1 < 1
        assert 0 < box.y0 < box.y1 < 1


def test_both_photos_share_a_scale() -> None:
    """The same contribution has the same colour in both, however much hotter the other is."""
    weak, strong = explained(match=HEAT / 4), explained(match=HEAT)
    alone = heat_map_figure([weak, weak], 0.1, "a net").axes[2].images[0].get_array()
    beside = heat_map_figure([weak, strong], 0.1, "a net").axes[2].images[0].get_array()
    assert beside.astype(int).sum() < alone.astype(int).sum()


def test_an_overlay_by_hand() -> None:
    """Cold: 30 % of inferno's near-black over grey 100; hot: 75 % of its last colour, (252, 255, 164)."""
    view = np.full((20, 40, 3), 100, np.uint8)
    seen = overlay(view, np.array([[0.0, 2.0]], np.float32), 2.0)
    assert (seen.shape, seen.dtype) == ((20, 40, 3), np.dtype(np.uint8))
    np.testing.assert_allclose(seen[10, 0], [70, 70, 71], atol=1)
    np.testing.assert_allclose(seen[10, 39], [214, 216, 148], atol=2)
    below = overlay(view, np.array([[-3.0, np.nan]], np.float32), 2.0)
    assert (below == seen[10, 0]).all()


def test_maps_without_energy_can_be_drawn() -> None:
    nothing = ExplainedPhoto("a.jpg", np.zeros((64, 64, 3), np.uint8), HEAT * 0, -np.abs(HEAT), np.nan, np.nan)
    figure = heat_map_figure([nothing], None, "a net")
    assert figure.axes[1].get_xlabel() == "no energy"
    assert figure.axes[2].get_xlabel() == "no energy\nopposes: −0.800"


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf", ".jpg", ".JPEG"])
def test_the_suffix_says_the_format(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"heat{suffix}"
    write_heat_map_figure([explained("100 $ or 200 $_{x.jpg" + "long" * 20)], None, r"$\notmath", path)
    starts = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF", ".jpg": b"\xff\xd8\xff"}
    assert path.read_bytes().startswith(starts.get(suffix, b"\xff\xd8\xff"))
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name], "nothing else is left behind"


def test_a_figure_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "heat.png"
    path.write_bytes(b"old")
    write_heat_map_figure([explained()], None, "a net", path)
    with Image.open(path) as image:
        assert image.width > image.height > 200


def test_places_that_cannot_be_drawn_into(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match=r"heat\.bmp is not a figure that can be drawn\. Give \.png, \.svg, \.pdf"):
        check_figure_path(tmp_path / "heat.bmp")
    with pytest.raises(ParameterError, match=r"the folder .*none does not exist\. Make it, or choose another"):
        check_figure_path(tmp_path / "none" / "heat.png")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(ParameterError, match="this is a folder"):
        check_figure_path(tmp_path / "folder.png")


def test_a_disk_that_refuses(tmp_path: Path) -> None:
    """Something stands where the new figure is written before it takes the old one's place."""
    (tmp_path / ".heat.png.tmp").mkdir()
    (tmp_path / "heat.png").write_bytes(b"old")
    with pytest.raises(StorageError, match=r"the figure cannot be written .* Choose a writable folder"):
        write_heat_map_figure([explained()], None, "a net", tmp_path / "heat.png")
    assert (tmp_path / "heat.png").read_bytes() == b"old"
