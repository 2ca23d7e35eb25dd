"""What a measurement was taken on."""

import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from retrieval.machine import available_cores


def describe_machine() -> str:
    """One line: date, processor, cores, Python and the versions that matter."""
    names = (
        "onnxruntime",
        "onnxruntime-gpu",
        "faiss-cpu",
        "faiss-gpu",
        "numpy",
        "pillow",
        "opencv-python-headless",
        "fastapi",
        "uvicorn",
    )
    versions = ", ".join(f"{name} {found}" for name in names if (found := _version(name)) is not None)
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, {_processor()}, {available_cores()} cores, "
        f"Python {platform.python_version()}, {versions}"
    )


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
