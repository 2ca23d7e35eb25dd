"""docs/reference/python-client.md says what the code says, and both clients say the same."""

import inspect
import runpy
from pathlib import Path

import pytest

from sightfix.client import AsyncSightfixClient, SightfixClient, make_synchronous

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "python-client.md"


def public(client: type) -> dict[str, object]:
    return {name: member for name, member in vars(client).items() if not name.startswith("_") or name == "__init__"}


def test_the_page_is_made_of_the_code() -> None:
    made = runpy.run_path(str(PAGE.with_name("make_python_client_page.py")))["page"]()
    assert made == PAGE.read_text(encoding="utf-8"), "run: python docs/reference/make_python_client_page.py"


@pytest.mark.parametrize("name", sorted(public(SightfixClient)))
def test_the_page_names_every_method(name: str) -> None:
    assert name in ("__init__", "close") or f"\n{name}(" in PAGE.read_text(encoding="utf-8")


def test_the_synchronous_client_is_generated_from_the_other() -> None:
    made = make_synchronous.synchronous_source()
    assert made == make_synchronous.TARGET.read_text(encoding="utf-8"), "run sightfix/client/make_synchronous.py"


def test_both_clients_have_the_same_methods_and_arguments() -> None:
    sync, asynchronous = public(SightfixClient), public(AsyncSightfixClient)
    assert sync.keys() == asynchronous.keys()
    for name, member in sync.items():
        assert callable(member)
        assert inspect.signature(member) == inspect.signature(asynchronous[name]), name  # type: ignore[arg-type]
        assert inspect.iscoroutinefunction(asynchronous[name]) is (name != "__init__")
        assert not inspect.iscoroutinefunction(member)
