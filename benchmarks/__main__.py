"""``make bench``: every measurement of RESULTS.md, one after another (about ten minutes on two cores)."""

from importlib import import_module

MODULES = (
    "geo_prior",
    "indexing_throughput",
    "localize_latency",
    "campus_recall",
    "fix_methods",
    "default_bundle_size",
)


def main() -> None:
    """Run them all."""
    for name in MODULES:
        import_module(f"benchmarks.{name}").main()
        print()


if __name__ == "__main__":
    main()
