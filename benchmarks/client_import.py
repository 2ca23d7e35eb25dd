"""How long importing the Python client takes, beside another version of the repository.

git worktree add /tmp/before c0fdd7f
python -m benchmarks.client_import /tmp/before
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Final

from benchmarks.machine import describe_machine

_HERE: Final = Path(__file__).resolve().parents[1]
_STATEMENTS: Final = ("import sightfix.client", "from sightfix.client import SightfixClient")
# CPU time counts beside wall time: it varies less on a machine that does other work.
_CODE: Final = """
import sys, time
wall, cpu = time.perf_counter(), time.process_time()
{statement}
print(time.perf_counter() - wall, time.process_time() - cpu, sys.modules["sightfix.client"].__file__)
"""


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("before", type=Path, help="root of a checkout of the version to compare with")
    parser.add_argument("--runs", type=int, default=15, help="imports of each, in turn")
    arguments = parser.parse_args()
    roots = {"before": arguments.before.resolve(), "now": _HERE}
    print(f"median of {arguments.runs} processes each, in turn; {describe_machine()}\n")
    print("| | before: wall, ms | CPU, ms | now: wall, ms | CPU, ms | ratio: wall | CPU |")
    print("|---|---|---|---|---|---|---|")
    for statement in _STATEMENTS:
        for root in roots.values():
            _import_once(statement, root)  # writes the bytecode, and fills the cache of the file system
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in roots}
        for _ in range(arguments.runs):
            for name, root in roots.items():
                times[name].append(_import_once(statement, root))
        before, now = ([median(column) * 1e3 for column in zip(*some, strict=True)] for some in times.values())
        ratios = [new / old for new, old in zip(now, before, strict=True)]
        cells = [*(f"{value:.0f}" for value in (*before, *now)), *(f"{ratio:.2f}" for ratio in ratios)]
        print(f"| `{statement}` | {' | '.join(cells)} |")


def _import_once(statement: str, root: Path) -> tuple[float, float]:
    """Wall and CPU seconds of one import in a process of its own."""
    command = [sys.executable, "-P", "-c", _CODE.format(statement=statement)]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    wall, cpu, file = done.stdout.split()
    if not Path(file).is_relative_to(root):
        raise SystemExit(f"{file} was imported, which does not lie below {root}")
    return float(wall), float(cpu)


if __name__ == "__main__":
    main()
