"""Paths of photos as they are told and kept."""

import os
from pathlib import Path
from typing import Final

_NOT_PLAIN: Final = (f"{os.sep}{os.sep}", f"{os.sep}.")


class PathsBelow:
    """Paths below a root with ``/``, and whole paths elsewhere. Links stay as they are.

    Args:
        root: the folder.
    """

    def __init__(self, root: Path) -> None:
        whole = os.path.abspath(root)  # noqa: PTH100 - resolve() would follow links out of the root
        self._start = whole if whole.endswith(os.sep) else whole + os.sep

    def below(self, path: str | Path) -> str:
        """The path below the root, or the whole path where it lies elsewhere."""
        text = str(path)
        # Nearly all paths are plain already, and there are millions.
        if not os.path.isabs(text) or any(sign in text for sign in _NOT_PLAIN):  # noqa: PTH117
            text = os.path.abspath(text)  # noqa: PTH100
        if text.startswith(self._start):
            text = text[len(self._start) :]
            return text if os.sep == "/" else text.replace(os.sep, "/")
        return text
