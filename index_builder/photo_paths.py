"""Paths of photos as they are told and kept."""

import os
from pathlib import Path


def path_below(path: Path, root: Path) -> str:
    """The path of a photo below a root with ``/``, or the whole path where it lies elsewhere."""
    whole, start = Path(os.path.abspath(path)), Path(os.path.abspath(root))  # noqa: PTH100 - links stay as they are
    return whole.relative_to(start).as_posix() if whole.is_relative_to(start) else str(path)
