"""Thousands of hostile requests to a live server process; exit status 1 at the first answer that may not be.

    python -m benchmarks.serving.hostile [--scale 1] [--seed N]

`tests.service.malformed` makes and judges them. Scale 1 is about 3,500 cases and two minutes.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.machine import describe_machine
from benchmarks.serving.process_watch import held_by
from index_builder.update import build_index
from retrieval.bundle import open_bundle
from retrieval.describer import Describer
from tests.places import make_places
from tests.running_server import running_server
from tests.service.malformed.request_fuzzer import ENVIRONMENT, RequestFuzzer

CASES = {"images": 1200, "batches": 100, "json": 600, "multipart": 500, "raw": 800, "schema": 800}


def main(arguments: list[str] | None = None) -> int:
    """Attack a server; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=1.0, help="times the usual number of cases")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of what is left to chance")
    given = parser.parse_args(arguments)
    print(f"hostile requests, seed {given.seed}, {describe_machine()}", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        places = make_places(folder / "roots", 12)
        build_index(places, Describer(open_bundle()), folder / "indexes", "places")
        served = ["--indexes", str(folder / "indexes"), "--source-root", str(folder / "roots")]
        with running_server(folder / "log", served, ENVIRONMENT) as server:
            server.wait_until_ready()
            fuzzer = RequestFuzzer(server.url, given.seed)
            fuzzer.samples()
            before = held_by(server.process.pid)
            begun = time.monotonic()
            for area, cases in CASES.items():
                getattr(fuzzer, area)(round(cases * given.scale))
            seconds = time.monotonic() - begun
            fuzzer.samples()
            after = held_by(server.process.pid)
            tracebacks = (folder / "log").read_text().count("Traceback")
    report(fuzzer, seconds)
    print(f"  resident memory {before.resident_mb:.0f} MB before, {after.resident_mb:.0f} MB after")
    print(f"  {tracebacks} tracebacks in the server's log")
    return 1 if tracebacks else 0


def report(fuzzer: RequestFuzzer, seconds: float) -> None:
    """Print what came back."""
    checks = fuzzer.checks
    slowest, what = checks.slowest
    print(f"  {checks.cases:,} cases in {seconds:.0f} s; slowest answer {slowest:.2f} s ({what})")
    for area in sorted({area for area, _ in checks.answers}):
        counts = {status: count for (found, status), count in sorted(checks.answers.items()) if found == area}
        print(f"  {area:10} " + ", ".join(f"{status or 'hung up'} {count:,}" for status, count in counts.items()))
    print("  problems: " + ", ".join(f"{code} {count:,}" for code, count in checks.codes.most_common()))


if __name__ == "__main__":
    sys.exit(main())
