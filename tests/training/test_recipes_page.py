"""The page on recipes is made from the settings, so that it names every key as it is."""

import runpy
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "recipes.md"


def test_the_page_is_up_to_date() -> None:
    made = runpy.run_path(str(PAGE.with_name("make_recipes_page.py")))["page"]()
    assert made == PAGE.read_text(encoding="utf-8"), "run: python docs/reference/make_recipes_page.py"
