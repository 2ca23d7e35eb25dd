"""Seven objectives trained on the west of bgu_campus and tested on its east: the table of benchmarks/campus_training/.

One seed takes about 50 minutes on two cores; an interrupted run goes on. Needs ../shared/data.
"""

import argparse
import shutil
from pathlib import Path

from benchmarks.indexing_throughput import PHOTOS
from sightfix.cli import app

OBJECTIVES = ("simclr", "triplet", "barlow-twins", "byol", "mocov2", "vicreg", "simsiam")
RESULTS = Path(__file__).parent / "campus_training"

# East in metres is (longitude - 34.80) * 95160: the west ends at 227 m, the east begins at 252 m.
WEST = "bbox=31.2,34.8,31.3,34.8023854"
EAST = "bbox=31.2,34.8026482,31.3,34.81"
# Positions of different sessions differ by 10 to 20 m here, so the paper's 10 m would leave most true pairs out.
CAMPUS = ("--set", "geopair.positive_radius_m=25")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/campus-training"))
    parser.add_argument("--cache", type=Path, default=Path("photo-cache"))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--objectives", nargs="+", default=OBJECTIVES)
    parser.add_argument("--keep-results", action="store_true", help="do not replace the committed table")
    arguments = parser.parse_args()
    photos = f"csv:{PHOTOS / 'bgu_campus' / 'images.csv'}"
    east = f"{photos}?{EAST}"
    app(
        [
            "compare",
            *(f"{name}-efficientnet-lite0" for name in arguments.objectives),
            *("--train", f"{photos}?{WEST}"),
            *("--eval", "east-cross-phone"),
            *("--eval-database", f"{east}&sessions=phoneA_*", "--eval-queries", f"{east}&sessions=phoneB_*"),
            *("--eval", "east-day-night"),
            *("--eval-database", f"{east}&sessions=*_day", "--eval-queries", f"{east}&sessions=*_night"),
            *("--seeds", str(arguments.seeds), "--radius", "25", "--radius", "10", *CAMPUS),
            *("--cache", str(arguments.cache), "--device", arguments.device, "--out", str(arguments.out)),
        ],
        standalone_mode=False,
    )
    if not arguments.keep_results:
        RESULTS.mkdir(exist_ok=True)
        for name in ("table.md", "table.csv", "comparison.png"):
            shutil.copy(arguments.out / name, RESULTS / name)


if __name__ == "__main__":
    main()
