"""CSV tables of any content and any length: what is written is read, and never all at once."""

import csv
import io
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from retrieval.geo import Position
from retrieval.references import Reference
from retrieval.references.table_files import CsvTable
from retrieval.references.tables import TableOptions
from tests.hypothesis_profiles import examples

names = st.text(st.characters(codec="utf-8", exclude_characters="\0\\/", exclude_categories=["Cc"]), min_size=1).filter(
    lambda text: text == text.strip() and text not in (".", "..")
)
times = st.datetimes(datetime(1990, 1, 1), datetime(2100, 1, 1)) | st.datetimes(
    datetime(1990, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC)
)
rows = st.fixed_dictionaries(
    {
        "path": names.map(lambda name: f"photos/{name}.jpg"),
        "lat": st.floats(-90, 90),
        "lon": st.floats(-180, 180),
        "heading": st.none() | st.floats(0, 360, exclude_max=True),
        "altitude": st.none() | st.floats(-500, 9000),
        "captured_at": st.none() | times,
        "session": st.none() | names,
        "note": st.none() | names,
    }
)


@settings(max_examples=examples(60), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(rows, min_size=1, max_size=8, unique_by=lambda row: row["path"]),
    st.sampled_from([",", ";", "\t"]),
    st.booleans(),
)
def test_what_is_written_is_read(tmp_path: Path, written: list[dict[str, object]], delimiter: str, mark: bool) -> None:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(written[0]), delimiter=delimiter)
    writer.writeheader()
    for row in written:
        writer.writerow(
            {name: value.isoformat() if isinstance(value, datetime) else value for name, value in row.items()}
        )
    path = tmp_path / "refs.csv"
    path.write_text(("\ufeff" if mark else "") + text.getvalue(), encoding="utf-8", newline="")
    assert list(CsvTable(path, TableOptions(missing="ignore"))) == [
        Reference(
            id=str(row["path"]),
            path=tmp_path / str(row["path"]),
            position=Position(row["lat"], row["lon"]),
            altitude_m=row["altitude"],
            heading_deg=row["heading"],
            captured_at=row["captured_at"],
            session=row["session"],
            metadata={"note": row["note"]} if row["note"] else {},
        )
        for row in written
    ]


COUNT_ROWS = """
import re, resource, sys
from pathlib import Path
from retrieval.references import open_references

def peak():
    # getrusage's peak is inherited from the process that forked this one; Linux's VmHWM begins with the program.
    status = Path("/proc/self/status")
    if status.exists():
        return int(re.search(r"VmHWM:\\s+(\\d+)", status.read_text())[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

rows = iter(open_references(sys.argv[1]))
keep = [next(rows)]
before = peak()
if sys.argv[2] == "list":
    keep += rows
    count = len(keep)
else:
    count = 1 + sum(1 for _ in rows)
print(count, (peak() - before) * (1 if sys.platform == "darwin" else 1024))
"""


@pytest.mark.skipif(os.name == "nt", reason="peak memory is asked of getrusage")
def test_200_000_rows_never_stand_in_memory_at_once(tmp_path: Path) -> None:
    count = 200_000
    path = tmp_path / "many.csv"
    with path.open("w") as file:
        file.write("path,lat,lon,session\n")
        file.writelines(f"images/{number:07d}.jpg,48.5,{number / count},walk\n" for number in range(count))

    def bytes_a_row(how: str) -> float:
        command = [sys.executable, "-c", COUNT_ROWS, f"{path}?missing=ignore", how]
        found = subprocess.run(command, capture_output=True, text=True, check=True)
        read, grown = map(int, found.stdout.split())
        assert read == count
        return grown / read

    # The hashes of the ids stay: 16 to 32 bytes each, and half of that again while their table grows.
    assert bytes_a_row("one by one") < 100
    assert bytes_a_row("list") > 400, "the measurement does not see a list either"


def test_a_consumer_can_stop_early(tmp_path: Path) -> None:
    path = tmp_path / "refs.csv"
    path.write_text("path,lat,lon\n1.jpg,1,2\nbad\n")
    references: Iterator[Reference] = iter(CsvTable(path, TableOptions(missing="ignore")))
    assert next(references).id == "1.jpg"


def test_reading_a_table_imports_no_torch() -> None:
    code = "import sys, retrieval.references; print('torch' in sys.modules, 'matplotlib' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["False", "False"]
