"""The table of docs/explanation/failures.md: no row is missing, and every test it names exists and may run."""

import ast
import re
from functools import cache
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
ROWS = {*map(str, range(1, 44)), "16b"}
TEXT = (REPOSITORY / "docs" / "explanation" / "failures.md").read_text()
TABLE = {
    cells[0].strip(): [cell.strip() for cell in cells[1:]]
    for line in TEXT.splitlines()
    if re.match(r"\| \d", line) and (cells := line.strip("|").split("|"))
}


@cache
def cases_of(path: str) -> dict[str, bool]:
    """The tests of a file, and whether each is skipped whatever happens."""
    functions = [node for node in ast.parse((REPOSITORY / path).read_text()).body if isinstance(node, ast.FunctionDef)]
    return {
        function.name: any("mark.skip(" in ast.unparse(one) + "(" for one in function.decorator_list)
        for function in functions
        if function.name.startswith("test_")
    }


def named(text: str) -> list[tuple[str, str]]:
    return re.findall(r"`(tests/\S+\.py)::(test_\w+)`", text)


def test_every_complaint_has_its_row() -> None:
    assert set(TABLE) == ROWS
    assert all(len(cells) == 3 for cells in TABLE.values())


def test_every_row_is_proven_or_says_why_it_does_not_apply() -> None:
    for row, (_, what_we_do, proof) in TABLE.items():
        proven = bool(named(proof))
        excused = bool(re.match(r"Does not apply: \w+", what_we_do))
        assert proven != excused, row
        # Nothing else stands in the column than tests.
        assert not re.sub(r"`tests/\S+\.py::test_\w+`(, )?", "", proof), row


def test_every_named_test_exists_and_may_run() -> None:
    for path, name in named(TEXT):
        assert (REPOSITORY / path).is_file(), path
        assert cases_of(path).get(name) is False, f"{path}::{name}"


def test_a_wrong_name_would_be_found() -> None:
    assert "test_that_there_is_not" not in cases_of("tests/service/test_failures.py")
    assert named("`tests/a.py::test_b`, `tests/c.py::test_d`") == [("tests/a.py", "test_b"), ("tests/c.py", "test_d")]
