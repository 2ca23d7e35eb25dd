"""Does a track beat frame-by-frame answers? Simulated drives through toy towns that no setting was chosen on."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.exact_fixes import PlacedPhotos, stretch_of
from benchmarks.machine import describe_machine
from benchmarks.toy_drives import Knowledge, describe_cameras, describe_survey, noisy_odometry, plan_drive
from retrieval.bundle import open_bundle
from retrieval.describer import Describer, Descriptors
from retrieval.evaluation import Bootstrap, exact_ranking
from retrieval.geo import Float64Array, Position, haversine_m
from retrieval.localize.evidence import FixMethod, FixSettings
from retrieval.localize.fix import FixMaker
from retrieval.tracking import Odometry, PlaceMap, Track, TrackSettings
from sightfix.toy_town import generator, town_for

# The settings were chosen on towns 101, 102 and 103: see RESULTS.md.
TOWNS: Final = (201, 202, 203)
REFERENCES: Final = 500
DRIVES: Final = 4
FRAMES: Final = 30
LIGHTS: Final = ("day", "dusk")

METHODS: Final = (
    "frame by frame, top1",
    "frame by frame, fix",
    "track",
    "track, speed",
    "track, noisy displacement",
)
_KNOWS: Final[dict[str, Knowledge]] = {
    "track": "nothing",
    "track, speed": "speed",
    "track, noisy displacement": "displacement",
}
_MATCHES: Final = 50
_NEAR_M: Final = 25.0
_SURE: Final = 0.8
_FAR_M: Final = 50.0


@dataclass(frozen=True, slots=True)
class Town:
    """One town, described: where its references are, and its drives."""

    lat: Float64Array
    lon: Float64Array
    descriptors: Descriptors
    score_stretch: float
    places: PlaceMap
    drives: list["DescribedDrive"]


@dataclass(frozen=True, slots=True)
class DescribedDrive:
    """One drive, its true positions, what its wheels tell, and its frames by day and at dusk."""

    lat: Float64Array
    lon: Float64Array
    odometry: dict[Knowledge, list[Odometry | None]]
    frames: dict[str, Descriptors]


@dataclass(slots=True)
class Answers:
    """What one method answered: one entry a frame."""

    error_m: list[float] = field(default_factory=list)
    confidence: list[float] = field(default_factory=list)
    radius_m: list[float] = field(default_factory=list)
    drive: list[int] = field(default_factory=list)
    frame: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Stream:
    """Frames in a row: their matches in one town, the truth, and the odometry."""

    town: Town
    rows: NDArray[np.int64]
    scores: NDArray[np.float32]
    lat: Float64Array
    lon: Float64Array
    odometry: dict[Knowledge, list[Odometry | None]]


def main() -> None:
    """Print Markdown tables."""
    describer = Describer(open_bundle(), threads=1)
    print(f"tracking on simulated drives, default bundle; {describe_machine()}\n")
    started = time.perf_counter()
    towns = [_town(seed, describer) for seed in TOWNS]
    streams = {light: list(_streams(towns, light)) for light in LIGHTS}
    references = sum(len(town.lat) for town in towns)
    seconds = time.perf_counter() - started
    print(
        f"{len(TOWNS)} towns with {references} references ({_places(towns)} places), {len(TOWNS) * DRIVES} drives of "
        f"{FRAMES} frames in each light, one frame a second; drawn and described in {seconds:.0f} s\n"
    )
    _print_drives(streams)
    _print_start(streams)
    _print_kidnaps(towns)
    _print_elsewhere(towns)
    _print_time(streams["dusk"])


def _town(seed: int, describer: Describer) -> Town:
    town = town_for(REFERENCES, seed=seed)
    metres, descriptors = describe_survey(town, REFERENCES, describer)
    positions = [town.position(east, north) for east, north in metres]
    lat, lon = _degrees(positions)
    drives = []
    for number in range(DRIVES):
        drive = plan_drive(town, number, FRAMES)
        where = _degrees([town.position(camera.east, camera.north) for camera in drive.cameras])
        frames = {
            light: describe_cameras(town, drive.cameras, light, describer, 1_000_000 + 10_000 * number + 1_000 * place)
            for place, light in enumerate(LIGHTS)
        }
        drives.append(DescribedDrive(*where, noisy_odometry(drive, generator(seed, "odometry", number)), frames))
    places = PlaceMap(lat, lon, TrackSettings().place_m)
    return Town(lat, lon, descriptors, stretch_of(descriptors), places, drives)


def _streams(towns: list[Town], light: str) -> Iterator[Stream]:
    for town in towns:
        for drive in town.drives:
            yield _stream(town, drive, drive.frames[light])


def _stream(town: Town, drive: DescribedDrive, frames: Descriptors) -> Stream:
    rows, scores = exact_ranking(town.descriptors, frames, _MATCHES)
    return Stream(town, rows, scores, drive.lat, drive.lon, drive.odometry)


def _spliced(first: Stream, second: Stream) -> Stream:
    """Half of one drive, then half of another: the camera is carried away and its wheels do not notice."""
    half = FRAMES // 2

    def join(one: NDArray, other: NDArray) -> NDArray:
        return np.concatenate([one[:half], other[half:]])

    odometry = {known: first.odometry[known][:half] + second.odometry[known][half:] for known in first.odometry}
    return Stream(
        first.town,
        join(first.rows, second.rows),
        join(first.scores, second.scores),
        join(first.lat, second.lat),
        join(first.lon, second.lon),
        odometry,
    )


def _answers(streams: list[Stream], method: str) -> Answers:
    answers = Answers()
    for drive, stream in enumerate(streams):
        answer = _answerer(stream, method)
        for frame in range(len(stream.rows)):
            position, confidence, radius_m = answer(frame)
            error = haversine_m(position.lat, position.lon, stream.lat[frame], stream.lon[frame])
            answers.error_m.append(float(error))
            answers.confidence.append(confidence)
            answers.radius_m.append(radius_m)
            answers.drive.append(drive)
            answers.frame.append(frame)
    return answers


def _answerer(stream: Stream, method: str) -> Callable[[int], tuple[Position, float, float]]:
    """What answers frame after frame: position, confidence, radius."""
    if method in _KNOWS:
        track, odometry = Track(stream.town.places), stream.odometry[_KNOWS[method]]

        def tracked(frame: int) -> tuple[Position, float, float]:
            cosines = stream.scores[frame] / stream.town.score_stretch
            fix = track.update(stream.rows[frame], cosines, float(frame), odometry[frame])
            assert fix.position is not None
            assert fix.radius_m is not None
            return fix.position, fix.confidence, fix.radius_m

        return tracked
    name: FixMethod = "top1" if method.endswith("top1") else "weighted_cluster"

    def alone(frame: int) -> tuple[Position, float, float]:
        rows, scores = stream.rows[frame], stream.scores[frame].astype(np.float64)
        maker = FixMaker(
            PlacedPhotos(stream.town.lat, stream.town.lon, stream.town.score_stretch), FixSettings(method=name)
        )
        _, fix = maker.fix(maker.ranking(rows, scores))
        assert fix is not None
        return fix.position, fix.confidence, fix.radius_m

    return alone


def _print_drives(streams: dict[str, list[Stream]]) -> None:
    print(
        "| light | answer | within 25 m, % | over the fix, points | median m | p90 m | sure (> 0.8), % "
        "| sure and > 50 m off, % | radius holds, % |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    bootstrap = Bootstrap()
    for light, some in streams.items():
        fix = np.array(_answers(some, METHODS[1]).error_m) <= _NEAR_M
        for method in METHODS:
            answers = _answers(some, method)
            error, groups = np.array(answers.error_m), np.array(answers.drive)
            near = error <= _NEAR_M
            wrong = _sure_and_wrong(answers)
            holds = error <= np.array(answers.radius_m)
            columns = (
                np.stack([near, near.astype(float) - fix, wrong, holds, np.array(answers.confidence) > _SURE], axis=1)
                * 100.0
            )
            low, high = bootstrap.mean_interval(columns, groups)
            cells = [
                f"{mean:.1f} ({a:.1f}–{b:.1f})" for mean, a, b in zip(columns.mean(axis=0), low, high, strict=True)
            ]
            quantiles = bootstrap.quantile_interval(error, groups, [0.5, 0.9])
            metres = [
                f"{np.quantile(error, q):.1f} ({a:.1f}–{b:.1f})" for q, a, b in zip((0.5, 0.9), *quantiles, strict=True)
            ]
            gain = "" if method == METHODS[1] else cells[1].replace("–", " to ")
            print(
                f"| {light} | {method} | {cells[0]} | {gain} | {metres[0]} | {metres[1]} "
                f"| {cells[4]} | {cells[2]} | {cells[3]} |"
            )
    chances = [
        (haversine_m(s.lat[:, None], s.lon[:, None], s.town.lat, s.town.lon) <= _NEAR_M).mean() for s in streams["day"]
    ]
    frames = sum(len(stream.rows) for stream in streams["day"])
    print(f"\n{frames} frames in each light; chance within 25 m: {100 * np.mean(chances):.1f} %.\n")


def _sure_and_wrong(answers: Answers) -> NDArray[np.bool_]:
    return (np.array(answers.confidence) > _SURE) & (np.array(answers.error_m) > _FAR_M)


def _print_start(streams: dict[str, list[Stream]]) -> None:
    """The first frames, where a track knows no more than they do."""
    print("| within 25 m, % | " + " | ".join(f"{light}, frame {part}" for light in LIGHTS for part in _PARTS) + " |")
    print("|---" * (1 + len(LIGHTS) * len(_PARTS)) + "|")
    for method in METHODS[1:]:
        cells = []
        for light in LIGHTS:
            answers = _answers(streams[light], method)
            near, frame = np.array(answers.error_m) <= _NEAR_M, np.array(answers.frame)
            cells += [f"{100 * near[(frame >= a) & (frame < b)].mean():.0f}" for a, b in _PARTS.values()]
        print(f"| {method} | {' | '.join(cells)} |")
    print()


_PARTS: Final = {"1": (0, 1), "2–5": (1, 5), "6–15": (5, 15), f"16–{FRAMES}": (15, FRAMES)}


def _print_kidnaps(towns: list[Town]) -> None:
    half = FRAMES // 2
    print(
        "| light | answer | within 25 m after it, % | frames until within 25 m, median (p90) | sure and > 50 m off, % |"
    )
    print("|---|---|---|---|---|")
    for light in LIGHTS:
        streams = []
        for town in towns:
            whole = [_stream(town, drive, drive.frames[light]) for drive in town.drives]
            streams += [_spliced(one, whole[(number + 1) % DRIVES]) for number, one in enumerate(whole)]
        for method in METHODS[1:]:
            answers = _answers(streams, method)
            after = np.array(answers.frame) >= half
            near = (np.array(answers.error_m) <= _NEAR_M)[after].reshape(len(streams), -1)
            # Not found again by the end counts as the whole rest of the drive.
            until = np.where(near.any(axis=1), near.argmax(axis=1), near.shape[1])
            wrong = _sure_and_wrong(answers)[after].mean()
            never = int((~near.any(axis=1)).sum())
            tail = f", {never} never" if never else ""
            print(
                f"| {light} | {method} | {100 * near.mean():.1f} | {np.median(until):.1f} "
                f"({np.quantile(until, 0.9):.1f}){tail} | {100 * wrong:.1f} |"
            )
    print()


def _print_elsewhere(towns: list[Town]) -> None:
    """Frames of a town that the index does not hold: every answer is wrong, and should not be sure."""
    print(f"| frames of another town, sure (> {_SURE}), % | " + " | ".join(LIGHTS) + " |")
    print("|---|" + "---|" * len(LIGHTS))
    for method in METHODS[1:]:
        cells = []
        for light in LIGHTS:
            streams = [
                _stream(town, drive, drive.frames[light])
                for number, town in enumerate(towns)
                for drive in towns[(number + 1) % len(towns)].drives
            ]
            confidence = np.array(_answers(streams, method).confidence)
            cells.append(f"{100 * (confidence > _SURE).mean():.1f}")
        print(f"| {method} | {' | '.join(cells)} |")
    print()


def _print_time(streams: list[Stream]) -> None:
    milliseconds, touched = [], []
    for stream in streams:
        track, odometry = Track(stream.town.places), stream.odometry["displacement"]
        for frame in range(len(stream.rows)):
            started = time.perf_counter()
            cosines = stream.scores[frame] / stream.town.score_stretch
            track.update(stream.rows[frame], cosines, float(frame), odometry[frame])
            milliseconds.append((time.perf_counter() - started) * 1e3)
            touched.append(track.touched)
    median, p99 = np.quantile(milliseconds, [0.5, 0.99])
    print(
        f"An update takes {median:.2f} ms (p99 {p99:.2f}) and reads {np.median(touched):.0f} places "
        f"(most {max(touched)})."
    )


def _degrees(positions: list[Position]) -> tuple[Float64Array, Float64Array]:
    return np.array([p.lat for p in positions]), np.array([p.lon for p in positions])


def _places(towns: list[Town]) -> int:
    return sum(town.places.count for town in towns)


if __name__ == "__main__":
    main()
