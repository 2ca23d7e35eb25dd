"""Dark and light, and what axe finds wrong: nothing."""

import pytest

from sightfix.demo import DemoTown
from tests.service.web.conftest import Visiting
from tests.service.web.visit import Visit

SCHEMES = ["light", "dark"]
NIGHTLY = pytest.mark.nightly


def brightness(visit: Visit) -> int:
    """Of the page's ground, 0 to 765."""
    return visit.page.evaluate(
        "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).reduce((a, b) => a + Number(b), 0)"
    )


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_system_chooses_the_colours_until_somebody_does(visit: Visiting, scheme: str) -> None:
    seen = visit(color_scheme=scheme).open()
    dark = scheme == "dark"
    assert (brightness(seen) < 100) == dark
    assert seen.page.get_attribute("#theme-button", "aria-pressed") == str(dark).lower()
    seen.page.click("#theme-button")
    assert (brightness(seen) < 100) == (not dark)
    seen.open()
    assert (brightness(seen) < 100) == (not dark), "it is remembered"
    seen.page.emulate_media(color_scheme="light" if dark else "dark")
    assert (brightness(seen) < 100) == (not dark)


@pytest.mark.parametrize("scheme", ["light", pytest.param("dark", marks=NIGHTLY)])
def test_axe_finds_nothing(visit: Visiting, town: DemoTown, scheme: str) -> None:
    seen = visit(color_scheme=scheme).open()
    assert seen.inaccessible() == []
    page = seen.page
    page.click("#options-details summary")
    page.check("#use-prior")
    seen.ask(town.queries[0].path)
    page.click(".match >> nth=0")
    page.click("#answer summary")
    assert seen.inaccessible() == []
    seen.failing = {415}
    no_photo = town.folder / "no-photo.txt"
    no_photo.write_text("no photo")
    seen.choose(no_photo)
    assert "415" in seen.problem()
    assert seen.inaccessible() == []


@pytest.mark.parametrize("scheme", [pytest.param("light", marks=NIGHTLY), "dark"])
def test_axe_finds_nothing_on_a_phone(visit: Visiting, town: DemoTown, scheme: str) -> None:
    phone = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}
    seen = visit(color_scheme=scheme, **phone).open()
    seen.ask(town.queries[1].path)
    assert seen.inaccessible() == []
