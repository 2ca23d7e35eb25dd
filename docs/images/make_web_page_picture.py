"""Draw docs/images/web-page.png: the page with a query of the toy town.

python docs/images/make_web_page_picture.py demo-town/queries/00000.jpg http://127.0.0.1:8080   # after `make demo`
"""

import io
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # tests are not installed

from tests.browser import FLAGS, chromium

SIZE = {"width": 1280, "height": 800}


def main(photo: Path, url: str) -> None:
    """Ask for the photo, point at the best match, and draw what is seen."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=list(FLAGS))
        context = browser.new_context(viewport=SIZE, reduced_motion="reduce", color_scheme="light")
        page = context.new_page()
        page.goto(url)
        page.wait_for_selector("#state[data-state=ready]")
        page.set_input_files("#file", photo)
        page.wait_for_selector("#answer-status:not([hidden])")
        page.wait_for_load_state("networkidle")
        drawn = page.screenshot()
        browser.close()
    Image.open(io.BytesIO(drawn)).convert("RGB").save(Path(__file__).with_name("web-page.png"), optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
