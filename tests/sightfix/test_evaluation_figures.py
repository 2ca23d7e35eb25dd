import builtins
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from retrieval.errors import MissingExtraError, StorageError
from retrieval.evaluation import Evaluation, Fixes, Positions, Protocol, Ranked, evaluate
from sightfix.figures import evaluation as evaluation_figures
from sightfix.figures.evaluation import EvaluatedPhotos, example_queries, write_figures
from sightfix.figures.plotting import matplotlib_figure

EVERY_FIGURE = {
    *("recall.png", "position_error.png", "confidence.png", "answered.png", "no_match.png"),
    *("successes.png", "failures.png"),
}


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photos") / "a_photo_with_a_name_that_is_far_too_long_to_print.jpg"
    pixels = np.random.default_rng(0).integers(0, 255, (60, 90, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(path, exif=exif)
    return path


def evaluated(queries: int = 40, *, right: bool = True, wrong: bool = True, fixes: bool = True) -> tuple:
    """Queries every 100 m along a parallel on a database of the same; every other one finds its neighbour first."""
    lon = 11.0 + np.arange(queries) * 100 / 74_400.0
    lat = np.full(queries, 48.0)
    own = np.arange(queries)
    finds_itself = (own % 2 == 0) if right and wrong else np.full(queries, right)
    first = np.where(finds_itself, own, (own + 1) % queries)
    rows = np.stack([first, (first + 2) % queries, np.where(finds_itself, (own + 5) % queries, own)], axis=1)
    stated = np.linspace(0.1, 0.9, queries)
    told = {"located": stated > 0.5, "familiarity": stated}
    made = Fixes(lat[first], lon[first], stated, np.full(queries, 20.0), **told) if fixes else None
    nowhere = np.full(3, np.nan)
    away = Fixes(nowhere, nowhere, located=np.zeros(3, bool), familiarity=np.array([0.0, 0.2, 0.4])) if fixes else None
    places = Positions.from_degrees(lat, lon)
    ranked = Ranked(places, places, rows, made, elsewhere=away)
    protocol = Protocol(radii_m=(25.0, 150.0), recall_at=(1, 3))
    return evaluate(ranked, protocol), ranked, protocol


def photos(photo: Path, queries: int = 40) -> EvaluatedPhotos:
    return EvaluatedPhotos(lambda row: photo, lambda row: photo, np.full((queries, 3), 0.5, np.float32))


def ink(path: Path) -> float:
    """Share of pixels that are not white."""
    return float((np.asarray(Image.open(path).convert("L")) < 250).mean())


def test_every_figure_is_written_and_holds_something(photo: Path, tmp_path: Path) -> None:
    evaluation, ranked, protocol = evaluated()
    written = write_figures(evaluation, ranked, protocol, photos(photo), tmp_path / "deep" / "folder")
    assert {path.name for path in written} == EVERY_FIGURE
    for path in written:
        assert 0.01 < ink(path) < 0.9, path.name
    assert Image.open(written[0]).width >= 800


def test_figures_without_data_are_left_out(photo: Path, tmp_path: Path) -> None:
    evaluation, ranked, protocol = evaluated(wrong=False, fixes=False)
    written = write_figures(evaluation, ranked, protocol, photos(photo), tmp_path)
    assert {path.name for path in written} == {"recall.png", "position_error.png", "successes.png"}
    evaluation, ranked, protocol = evaluated(right=False)
    assert "successes.png" not in {
        path.name for path in write_figures(evaluation, ranked, protocol, photos(photo), tmp_path)
    }


def test_examples_are_what_they_claim_and_follow_the_seed() -> None:
    evaluation, _, _ = evaluated()
    right, wrong = example_queries(evaluation, seed=0)
    assert len(right) == len(wrong) == 5
    assert (right % 2 == 0).all()
    assert (wrong % 2 == 1).all()
    assert example_queries(evaluation, seed=0)[0].tolist() == right.tolist()
    assert example_queries(evaluation, seed=1)[0].tolist() != right.tolist()


def axis_texts(figure: object) -> list[str]:
    return [axis.get_xlabel() for axis in figure.axes]  # type: ignore[attr-defined]


def test_labels_under_the_photos(photo: Path) -> None:
    """A wrong query finds its neighbour 100 m away, one 300 m away, and itself, 0 m, which is also the nearest true."""
    evaluation, ranked, protocol = evaluated()
    figure = evaluation_figures.examples_figure(evaluation, ranked, protocol, photos(photo), np.array([3]), right=False)
    name, first, second, third, nearest = axis_texts(figure)
    assert (first, second, third) == ("✗ 100 m · score 0.50", "✗ 300 m · score 0.50", "✓ 0 m · score 0.50")
    assert nearest == "0 m · rank 3"
    assert name.startswith("…")
    assert len(name) <= 26


def test_frames_of_right_and_wrong_differ(photo: Path) -> None:
    evaluation, ranked, protocol = evaluated()
    figure = evaluation_figures.examples_figure(evaluation, ranked, protocol, photos(photo), np.array([3]), right=False)
    colours = [axis.spines["left"].get_edgecolor() for axis in figure.axes]
    assert colours[1] == colours[2]
    assert colours[1] != colours[3]


def test_a_photo_is_shown_upright(photo: Path) -> None:
    assert evaluation_figures._thumbnail(photo).shape == (90, 60, 3)


def test_the_recall_curve_is_the_reports(photo: Path) -> None:
    evaluation, _, _ = evaluated()
    (axis,) = evaluation_figures.recall_figure(evaluation).axes
    curve = next(line for line in axis.lines if str(line.get_label()).startswith("within 25 m"))
    assert curve.get_xdata().tolist() == [1, 2, 3]
    expected = [100 * (entry.recall.value or 0) for entry in evaluation.curves[0].at]
    np.testing.assert_allclose(curve.get_ydata(), expected)
    assert any(line.get_label() == "chance" for line in axis.lines)


def test_the_error_curve_ends_where_all_are_counted() -> None:
    evaluation, _, _ = evaluated()
    (axis,) = evaluation_figures.position_error_figure(evaluation).axes
    top = next(line for line in axis.lines if str(line.get_label()).startswith("top-1"))
    assert top.get_label() == "top-1 match (40 answered)"
    assert (top.get_ydata()[0], top.get_ydata()[-1]) == (0.0, 100.0)
    assert top.get_xdata()[-2] == pytest.approx(evaluation.top_error_m.max())
    assert top.get_ydata()[-2] == 100.0


def test_without_matplotlib_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *args: object, **kwargs: object) -> object:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)  # type: ignore[arg-type]

    for name in [name for name in sys.modules if name.startswith("matplotlib")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(MissingExtraError, match="pip install 'sightfix\\[figures\\]'"):
        matplotlib_figure()


def test_a_folder_that_cannot_be_written(photo: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    evaluation, ranked, protocol = evaluated(queries=6)
    with pytest.raises(StorageError, match="a file has its name"):
        write_figures(evaluation, ranked, protocol, photos(photo, 6), tmp_path / "taken")


def test_an_evaluation_without_solvable_queries_can_be_drawn(photo: Path, tmp_path: Path) -> None:
    lat, far = Positions.from_degrees([48.0], [11.0]), Positions.from_degrees([49.0], [11.0])
    ranked = Ranked(far, lat, np.array([[0]]))
    protocol = Protocol(recall_at=(1,))
    found: Evaluation = evaluate(ranked, protocol)
    one = EvaluatedPhotos(lambda row: photo, lambda row: photo, np.ones((1, 1), np.float32))
    assert {path.name for path in write_figures(found, ranked, protocol, one, tmp_path)} == {
        "recall.png",
        "position_error.png",
    }
