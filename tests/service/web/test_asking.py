"""A photo comes in, and its matches, its fix and the map are there: by mouse, by keyboard, on a phone."""

import re

import pytest

from retrieval.geo import Position, haversine_m
from sightfix.demo import DemoTown
from tests.service.web.conftest import Visiting
from tests.service.web.visit import Visit

PHONE = {"viewport": {"width": 360, "height": 740}, "is_mobile": True, "has_touch": True, "device_scale_factor": 2}


def shown_fix(visit: Visit) -> Position:
    lat, lon = visit.page.inner_text(".coordinates").split(", ")
    return Position(float(lat), float(lon))


def distance_m(a: Position, b: Position) -> float:
    return float(haversine_m(a.lat, a.lon, b.lat, b.lon))


def wait_until_on_the_map(visit: Visit, selector: str) -> None:
    """Wait until every such sign is seen whole."""
    visit.until(
        f"""(() => {{
            const map = document.getElementById("map").getBoundingClientRect();
            return [...document.querySelectorAll("{selector}")].every((sign) => {{
                const {{ left, right, top, bottom }} = sign.getBoundingClientRect();
                return left >= map.left && right <= map.right && top >= map.top && bottom <= map.bottom;
            }});
        }})()"""
    )


def test_a_chosen_photo_is_localized(visit: Visiting, town: DemoTown) -> None:
    query = town.queries[0]
    seen = visit().open()
    assert re.fullmatch(r"toy-town, \d\d photos", seen.page.inner_text("#state"))
    seen.ask(query.path)
    page = seen.page
    assert page.inner_text("#answer-status") in ("Located", "Ambiguous")
    assert distance_m(shown_fix(seen), query.position) < 300
    assert "± " in page.inner_text(".figures")
    assert "not calibrated" in page.inner_text("#answer")
    assert page.get_attribute("#preview-image", "src").startswith("blob:")
    assert page.locator("#matches .match").count() == 10
    first = page.inner_text("#matches .match >> nth=0")
    assert re.search(r"score 0\.\d{3}", first), first
    assert re.search(r"[\d.]+ m from fix", first), first
    assert page.locator("#announcer").inner_text().endswith("10 matches.")
    # The thumbnails that are in view were really loaded and decoded.
    seen.until("document.querySelector('.match img').naturalWidth > 0")


@pytest.mark.parametrize("allowed", [True, False])
def test_the_coordinates_can_be_copied(visit: Visiting, town: DemoTown, allowed: bool) -> None:
    seen = visit(permissions=["clipboard-read", "clipboard-write"])
    if not allowed:  # as over plain HTTP from another machine
        seen.page.add_init_script("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
    seen.open()
    seen.ask(town.queries[0].path)
    coordinates = seen.page.inner_text(".coordinates")
    copy = seen.page.locator("#answer button")
    copy.click()
    seen.until(f"document.querySelector('#answer button').textContent === '{'Copied' if allowed else 'Selected'}'")
    copied = "navigator.clipboard.readText()" if allowed else "getSelection().toString()"
    assert seen.page.evaluate(copied) == coordinates


def test_the_map_shows_fix_radius_and_every_match(visit: Visiting, town: DemoTown) -> None:
    seen = visit().open()
    assert seen.page.locator(".index-bounds").count() == 1
    seen.ask(town.queries[1].path)
    page = seen.page
    assert page.locator(".match-sign").count() == 10
    assert page.locator(".fix-sign").count() == 1
    assert page.locator("path.fix-radius").count() == 1
    assert page.locator("img.leaflet-tile").count() == 0
    wait_until_on_the_map(seen, ".match-sign, .fix-sign")
    page.click("#show-matches")
    wait_until_on_the_map(seen, ".match-sign")
    # It stays so when the window changes.
    page.set_viewport_size({"width": 1130, "height": 640})
    wait_until_on_the_map(seen, ".match-sign")


def test_signs_on_one_spot_lie_under_the_best_and_can_be_leafed_through(visit: Visiting, town: DemoTown) -> None:
    seen = visit().open()
    seen.ask(town.queries[0].path)
    page = seen.page
    page.click("#show-index")
    for _ in range(4):
        page.click(".leaflet-control-zoom-out")
    tops = page.locator(".match-sign:not(.under)")
    assert tops.count() == 1
    assert tops.inner_text().split() == ["1", "+9"]
    box = tops.locator("b").bounding_box()
    assert box
    # With the bare mouse: a locator's click may scroll the map's inside, which Leaflet takes back.
    at = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    scale = page.inner_text(".leaflet-control-scale-line")
    page.mouse.click(*at)
    assert page.inner_text(".match[aria-expanded=true] .rank").split()[-1] == "1"
    # Two clicks in quick succession go two on, and do not zoom in.
    page.mouse.dblclick(*at)
    assert page.inner_text(".match[aria-expanded=true] .rank").split()[-1] == "3"
    assert page.inner_text(".leaflet-control-scale-line") == scale


def test_list_and_map_point_at_each_other(visit: Visiting, town: DemoTown) -> None:
    seen = visit().open()
    seen.ask(town.queries[0].path)
    page = seen.page
    page.hover(".match >> nth=2")
    assert page.locator(".match-sign.pointed b").inner_text() == "3"
    page.click(".match >> nth=2")
    assert page.get_attribute(".match >> nth=2", "aria-expanded") == "true"
    assert "looking" in page.inner_text(".match >> nth=2")


@pytest.mark.parametrize("way", ["drop", "paste"])
def test_a_photo_can_be_dropped_and_pasted(visit: Visiting, town: DemoTown, way: str) -> None:
    seen = visit().open()
    transfer = seen.transfer(town.queries[0].path, "image/jpeg")
    if way == "drop":
        seen.page.dispatch_event("#map", "dragenter", {"dataTransfer": transfer})
        assert seen.page.is_visible("#drop-hint")
        seen.page.dispatch_event("#map", "drop", {"dataTransfer": transfer})
        assert not seen.page.is_visible("#drop-hint")
    else:
        seen.page.evaluate(
            "(clipboardData) => document.dispatchEvent(new ClipboardEvent('paste', { clipboardData }))", transfer
        )
    seen.page.wait_for_selector("#answer-status:not([hidden])")
    assert seen.page.locator(".match").count() == 10


def test_everything_can_be_done_with_the_keyboard(visit: Visiting, town: DemoTown) -> None:
    seen = visit()
    page = seen.page
    # Listened for from the beginning: Playwright only then keeps the system's dialog away in time.
    page.on("filechooser", lambda chooser: chooser.set_files(town.queries[0].path))
    seen.open()
    seen.focus_by_tab("#choose")
    page.keyboard.press("Enter")
    page.wait_for_selector("#answer-status:not([hidden])")
    seen.focus_by_tab("#options-details summary")
    page.keyboard.press("Enter")
    seen.focus_by_tab("[name=top_k]")
    page.keyboard.press("Control+a")
    page.keyboard.type("3")
    page.keyboard.press("Enter")
    seen.until("document.querySelectorAll('.match').length === 3")
    seen.focus_by_tab("#map")
    before = page.inner_text(".leaflet-control-scale-line")
    for _ in range(3):
        page.keyboard.press("Minus")
    assert page.inner_text(".leaflet-control-scale-line") != before
    seen.focus_by_tab(".match")
    assert page.locator(".match-sign.pointed b").inner_text() == "1"
    page.keyboard.press("Enter")
    assert page.get_attribute(".match >> nth=0", "aria-expanded") == "true"
    ring = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert ring == "solid", "one sees where the focus is"


def test_where_nothing_can_be_found_there_is_no_fix(visit: Visiting, town: DemoTown) -> None:
    seen = visit().open()
    page = seen.page
    page.click("#options-details summary")
    page.check("#use-prior")
    # The circle begins at the map's middle, which is the town's.
    assert page.input_value("[name=prior_lat]").startswith("-48.87")
    assert page.locator("path.prior-circle").count() == 1
    page.fill("[name=prior_lat]", "12")
    page.fill("[name=prior_lon]", "-34")
    seen.ask(town.queries[0].path)
    assert page.inner_text("#answer-status") == "No match"
    assert "No reference photo lies inside the circle. So there is no fix." in page.inner_text("#answer")
    assert page.inner_text("#matches-none") == "None."
    assert page.locator(".match-sign, .fix-sign").count() == 0
    assert page.is_disabled("#show-fix")
    page.uncheck("#use-prior")
    page.click("#ask-again")
    page.wait_for_selector(".match")


def test_a_click_on_the_map_moves_the_circle(visit: Visiting) -> None:
    page = visit().open().page
    page.click("#options-details summary")
    page.check("#use-prior")
    before = page.input_value("[name=prior_lon]")
    page.click("#map", position={"x": 150, "y": 150})
    assert float(page.input_value("[name=prior_lon]")) < float(before)


def test_on_a_phone_all_of_it_fits_and_the_answer_is_brought_into_view(visit: Visiting, town: DemoTown) -> None:
    seen = visit(**PHONE).open()
    page = seen.page
    wide = "document.documentElement.scrollWidth - window.innerWidth"
    assert page.evaluate(wide) <= 0
    assert page.is_visible("#take")
    assert page.get_attribute("#camera", "capture") == "environment"
    seen.ask(town.queries[0].path)
    seen.until("Math.abs(document.getElementById('answer').getBoundingClientRect().top) < 40")
    page.click("#options-details summary")
    page.click(".match >> nth=0")
    assert page.evaluate(wide) <= 0
    small = page.evaluate(
        """() => [...document.querySelectorAll("button, summary, a.quiet")]
            .filter((one) => one.checkVisibility() && one.getBoundingClientRect().height < 30)
            .map((one) => one.textContent)"""
    )
    assert small == [], "too small for a finger"
