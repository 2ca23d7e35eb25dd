"""`sightfix demo` from nothing, as a newcomer runs it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from sightfix.demo import prepare_town


def demo(folder: Path) -> str:
    command = [sys.executable, "-P", "-m", "sightfix.cli", "demo", "--exit", "--references", "24", "--queries", "4"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


def test_the_demo_answers_and_says_how_to_go_on(folder: Path) -> None:
    (folder / "service.py").write_text("raise SystemExit('imported from the current folder')\n")
    first = demo(folder)
    assert re.search(r"^(LOCATED|AMBIGUOUS)  -48\.87\d+, -123\.39\d+", first, re.MULTILINE), first
    distance = re.search(r"the fix is (\d+\.\d) m away", first)
    assert distance, first
    assert float(distance.group(1)) < 200.0, "inside the town"
    assert re.search(r"curl --data-binary @demo-town/queries/\d+\.jpg -H 'Content-Type: image/jpeg' http://", first)
    assert "sightfix evaluate --index toy-town" in first
    version = (folder / "demo-town" / "indexes" / "toy-town" / "CURRENT").read_text()
    photo = folder / "demo-town" / "references" / "00000.jpg"
    drawn = photo.stat().st_mtime_ns
    prepare_town(folder / "demo-town", references=24, queries=4)
    assert (folder / "demo-town" / "indexes" / "toy-town" / "CURRENT").read_text() == version, "indexed once only"
    assert photo.stat().st_mtime_ns == drawn, "drawn once only"
