"""``make bench``: most measurements of RESULTS.md, one after another (about twenty minutes on two cores).

`campus_training`, which takes an hour, and `indexing_hundred_thousand`, a quarter of one, are run apart.
"""

from argparse import ArgumentParser
from importlib import import_module

MODULES = (
    "geo_prior",
    "indexing_throughput",
    "localize_latency",
    "grpc_latency",
    "observing_overhead",
    "describer_overhead",
    "precisions",
    "adaptation",
    "serving.throughput",
    "serving.overload",
    "serving.hostile",
    "serving.swaps",
    "campus_recall",
    "fix_methods",
    "score_scale",
    "reranking",
    "calibration",
    "default_bundle_size",
    "geopair_million",
    "training_throughput",
    "tracking_drive",
    "tracking_steps",
)


def main() -> None:
    """Run them all."""
    ArgumentParser(prog="python -m benchmarks", description=__doc__).parse_args()
    for name in MODULES:
        import_module(f"benchmarks.{name}").main()
        print()


if __name__ == "__main__":
    main()
