"""All sorts of clients for half an hour: does the server hold more memory, threads or files at the end than before?

    python -m benchmarks.serving.soak [--minutes 30]

A live server process with HTTP, gRPC, metrics and jobs. The traffic is `benchmarks.serving.traffic`; every few minutes
the served version changes, by activation and by a re-indexing job in turn. After a warm-up, and again at the end,
nobody asks for some seconds: threads and open files are compared between these two quiet moments, the memory's slope is
measured in between. Exit status 1 when something leaks, or a client got what no client of its kind may get.
"""

import argparse
import asyncio
import re
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from PIL import Image

from benchmarks.machine import describe_machine
from benchmarks.serving.process_watch import Held, Slope, held_by, memory_slope, thread_names
from benchmarks.serving.traffic import Tally, Traffic, as_table
from index_builder.update import build_index
from retrieval.bundle import open_bundle
from retrieval.describer import Describer
from tests.places import make_places, pattern
from tests.retrieval.encoded import encode
from tests.running_server import RunningServer, running_server

# Idle connections are closed after 5 s, and the job worker ends after 10.
QUIET_S = 14.0
SAMPLE_EVERY_S = 1.0


@dataclass(frozen=True)
class Allowed:
    """What is no leak yet.

    Attributes:
        mb_per_hour: the memory's slope; its whole interval must lie above to count.
        grown_mb: between the two quiet moments; both must be exceeded.
        threads, files: more at the second quiet moment.
    """

    mb_per_hour: float = 20.0
    grown_mb: float = 24.0
    threads: int = 2
    files: int = 3


@dataclass
class Soaked:
    """What was seen.

    Attributes:
        before, after: what the process held in the two quiet moments.
        samples: what it held while it was asked, in between.
        tally: what clients got.
        inside: photos still counted as inside at the end.
        tracebacks: in the server's log.
        swaps: how often another version was made current.
    """

    before: Held
    after: Held
    samples: list[Held]
    tally: Tally = field(default_factory=Tally)
    inside: float = 0.0
    tracebacks: int = 0
    swaps: int = 0

    @property
    def slope(self) -> Slope:
        """Of the memory."""
        return memory_slope(self.samples)


def faults(soaked: Soaked, allowed: Allowed) -> list[str]:
    """What is wrong, in sentences; empty when nothing is."""
    found = [
        f"{kind} got {status}, {soaked.tally.answers[kind, status]} times: {detail}"
        for (kind, status), detail in soaked.tally.wrong.items()
    ]
    slope, grown = soaked.slope, soaked.after.resident_mb - soaked.before.resident_mb
    if slope.low > allowed.mb_per_hour and grown > allowed.grown_mb:
        found.append(f"memory leaks: {slope}, {grown:.0f} MB more")
    if soaked.after.threads > soaked.before.threads + allowed.threads:
        found.append(f"threads leak: {soaked.before.threads} before, {soaked.after.threads} after")
    if soaked.after.files > soaked.before.files + allowed.files:
        found.append(f"files leak: {soaked.before.files} before, {soaked.after.files} after")
    if soaked.inside:
        found.append(f"{soaked.inside:g} photos are still inside")
    if soaked.tracebacks:
        found.append(f"{soaked.tracebacks} tracebacks in the log")
    return found


def main(arguments: list[str] | None = None) -> int:
    """Soak a server; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0, help="under load, after the warm-up")
    parser.add_argument("--warm-up-minutes", type=float, default=10.0)
    parser.add_argument("--swap-minutes", type=float, default=2.0, help="between two changes of the version")
    parser.add_argument("--pause-s", type=float, default=0.5, help="how long a client thinks, on average")
    given = parser.parse_args(arguments)
    print(f"soak, {given.minutes:g} minutes, {describe_machine()}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        soaked = soak(
            Path(folder), given.minutes * 60, given.warm_up_minutes * 60, given.swap_minutes * 60, given.pause_s
        )
    report(soaked)
    wrong = faults(soaked, Allowed())
    for fault in wrong:
        print(f"FAULT {fault}")
    return 1 if wrong else 0


def soak(
    folder: Path, seconds: float, warm_up_s: float, swap_every_s: float, pause_s: float, quiet_s: float = QUIET_S
) -> Soaked:
    """Soak a server of two versions of a made-up place.

    Args:
        folder: for all files.
        seconds: under load, after the warm-up.
        warm_up_s: of the same load before.
        swap_every_s: seconds between two changes of the version; every second one is a re-indexing job.
        pause_s: how long a client thinks between two requests, on average.
        quiet_s: how long nobody asks before the process is looked at.
    """
    describer = Describer(open_bundle())
    places = make_places(folder / "roots", 40)
    lines = [f"{row.id},{row.position.lat!r},{row.position.lon!r}" for row in places.rows if row.position]
    (places.root / "refs.csv").write_text("\n".join(["path,lat,lon", *lines, ""]))
    for count in (40, 30):
        places.rows = places.rows[:count]
        build_index(places, describer, folder / "indexes", "places")
    sides = ((640, 480), (1024, 768), (480, 640), (2000, 1500))
    photos = [
        encode(pattern(number % 30).resize(sides[number % 4], Image.Resampling.BILINEAR), "JPEG", quality=90)
        for number in range(48)
    ]
    given = ["--indexes", str(folder / "indexes"), "--grpc-port", "0", "--source-root", str(folder / "roots")]
    with running_server(folder / "log", given, {"SIGHTFIX_METRICS_PORT": "0"}) as server:
        server.wait_until_ready()
        found = re.search(r"gRPC at (\S+?)(,| with|$)", server.log.read_text(), re.MULTILINE)
        assert found is not None, server.log.read_text()
        traffic = Traffic(server.url, found.group(1), photos, pause_s)
        return asyncio.run(_soak(server, traffic, seconds, warm_up_s, swap_every_s, quiet_s))


async def _soak(
    server: RunningServer, traffic: Traffic, seconds: float, warm_up_s: float, every_s: float, quiet_s: float
) -> Soaked:
    await _load(server, traffic, warm_up_s, min(every_s, warm_up_s / 3))
    await asyncio.sleep(quiet_s)
    before = held_by(server.process.pid)
    print(f"  warm: {_told(before)}", flush=True)
    samples, swaps = await _load(server, traffic, seconds, every_s)
    await asyncio.sleep(quiet_s)
    soaked = Soaked(before, held_by(server.process.pid), samples, traffic.tally, swaps=swaps)
    soaked.inside = await asyncio.to_thread(_inside, server)
    soaked.tracebacks = server.log.read_text().count("Traceback")
    print("  threads: " + ", ".join(f"{name} {count}" for name, count in thread_names(server.process.pid).items()))
    return soaked


async def _load(server: RunningServer, traffic: Traffic, seconds: float, swap_every_s: float) -> tuple[list[Held], int]:
    """Traffic, swaps, and a look at the process every second."""
    samples: list[Held] = []
    swaps = 0
    running = asyncio.create_task(traffic.run(seconds))
    begun = told = swapped = time.monotonic()
    while not running.done():
        now = time.monotonic()
        samples.append(held_by(server.process.pid))
        if now - swapped >= swap_every_s:
            swapped = now
            # The job worker takes a core for a while; an activation costs nothing.
            await (traffic.activate("places") if swaps % 2 == 0 else traffic.reindex("places", "csv:refs.csv"))
            swaps += 1
        if now - told >= 60:
            told = now
            print(f"  {(now - begun) / 60:4.0f} min: {_told(samples[-1])}", flush=True)
        await asyncio.wait([running], timeout=SAMPLE_EVERY_S)
    await running
    return samples, swaps


def _inside(server: RunningServer) -> float:
    """Photos that the server counts as inside."""
    found = re.search(r"metrics at (http\S+)", server.log.read_text())
    assert found is not None, server.log.read_text()
    text = httpx.get(found.group(1).rstrip(",")).text
    return sum(float(value) for value in re.findall(r"^sightfix_queue_depth\S* (\S+)$", text, re.MULTILINE))


def _told(held: Held) -> str:
    return f"{held.resident_mb:.0f} MB resident, {held.threads} threads, {held.files} open files"


def report(soaked: Soaked) -> None:
    """Print all figures."""
    print(as_table(soaked.tally))
    total = sum(soaked.tally.answers.values())
    print(
        f"  {total:,} requests, {soaked.swaps} changes of the version, {len(soaked.tally.versions)} versions answered"
    )
    print(f"  quiet before: {_told(soaked.before)}")
    print(f"  quiet after:  {_told(soaked.after)}")
    peak = max(sample.resident_mb for sample in soaked.samples)
    print(f"  memory under load: {soaked.slope}, at most {peak:.0f} MB; {soaked.inside:g} photos inside at the end")


if __name__ == "__main__":
    sys.exit(main())
