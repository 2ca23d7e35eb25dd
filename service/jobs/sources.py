"""Where a job may read photos: below the configured source roots, and nowhere else."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final
from urllib.parse import quote, unquote

from retrieval.errors import ReferenceDataError
from retrieval.references.reference import Reference, ReferenceSource
from retrieval.references.spec import READERS
from service.problems import RequestError

# Options of readers whose value is the path of a file or folder.
PATH_OPTIONS: Final[frozenset[str]] = frozenset({"root", "keys", "names"})

_URL: Final = re.compile(r"(?:^|:)[A-Za-z][A-Za-z0-9+.-]*://")
_PREFIX: Final = re.compile(r"([A-Za-z][A-Za-z0-9_-]+):(.*)", re.DOTALL)


def confined_spec(spec: str, roots: Sequence[Path]) -> str:
    """The spec that opens a job's source, with absolute paths that lie below a root once links are resolved.

    Args:
        spec: as the client gave it; a relative path starts from the first root that has it.
        roots: the configured source roots.

    Raises:
        RequestError: no roots (``jobs_disabled``), a path that leaves them or a URL (``source_not_allowed``), nothing
            there (``source_not_found``), or an unknown reader or malformed option (``validation_error``).
    """
    if not roots:
        raise RequestError(
            "this server has no folders from which jobs may read photos",
            code="jobs_disabled",
            remedy="Start it with at least one source root",
        )
    if _URL.search(spec):
        raise _not_allowed(spec, "it is a URL, and no URL is ever opened")
    reader, text = _split_reader(spec)
    location, _, query = text.partition("?")
    if not location:
        raise RequestError(f"the source {spec!r} names no file or folder", code="validation_error")
    path, start = _confined_path(location, roots, roots, spec)
    options = _confined_options(query, start, roots, spec)
    return (f"{reader}:" if reader else "") + str(path) + (f"?{options}" if options else "")


class ConfinedSource:
    """A source each of whose photos must lie below a root: a table may list any path, and a folder may hold links.

    Args:
        source: the opened source.
        roots: the configured source roots.
        spec: of the job, reported in place of the source's own.
    """

    def __init__(self, source: ReferenceSource, roots: Sequence[Path], spec: str) -> None:
        self._source = source
        self._roots = [root.resolve() for root in roots]
        self._folders: dict[Path, Path] = {}
        self.spec = spec
        self.root = source.root
        self.skipped = source.skipped
        if not any(self.root.resolve().is_relative_to(root) for root in self._roots):
            raise _leaves(self.root)

    def __iter__(self) -> Iterator[Reference]:
        """Yield the references.

        Raises:
            ReferenceDataError: a photo lies outside the roots (``source_not_allowed``), or what the source raises.
        """
        for reference in self._source:
            if not self._holds(reference.path):
                raise _leaves(reference.path)
            yield reference
        self.skipped = self._source.skipped

    def __len__(self) -> int:
        return len(self._source)

    def _holds(self, path: Path) -> bool:
        try:
            if path.is_symlink():
                real = path.resolve()
            else:
                folder = self._folders.get(path.parent)
                if folder is None:
                    folder = self._folders[path.parent] = path.parent.resolve()
                real = folder / path.name
        except (OSError, RuntimeError, ValueError):  # a loop of links, a NUL
            return False
        return path.name != ".." and any(real.is_relative_to(root) for root in self._roots)


def _split_reader(spec: str) -> tuple[str | None, str]:
    match = _PREFIX.fullmatch(spec)
    if match is None:
        return None, spec
    if match[1] not in READERS:
        raise RequestError(
            f"there is no reader {match[1]!r}", code="validation_error", remedy=f"Choose {', '.join(READERS)}"
        )
    return match[1], match[2]


def _confined_path(text: str, starts: Sequence[Path], roots: Sequence[Path], spec: str) -> tuple[Path, Path]:
    """The resolved path, and the folder among `starts` that it starts from. It lies below one of the roots."""
    given = Path(text)
    if ".." in given.parts:
        raise _not_allowed(spec, "it has '..' in it")
    leaves = False
    for start in starts:
        try:
            path = (start / given).resolve()
            found = path.exists()
            held = any(path.is_relative_to(root.resolve()) for root in roots)
        except (OSError, RuntimeError, ValueError):  # a loop of links, a NUL, a name too long
            held = found = False
        if held and found:
            return path, start
        leaves = leaves or not held
    # An error for a path outside reveals nothing, not even whether it exists.
    if leaves:
        raise _not_allowed(spec, "it lies outside the source roots")
    raise RequestError(
        f"there is nothing at {text!r} below the source roots",
        code="source_not_found",
        remedy="Give a path that starts from one of the server's source roots",
    )


def _confined_options(query: str, start: Path, roots: Sequence[Path], spec: str) -> str:
    """The options of a spec, those that are paths made absolute; relative ones start where the source did."""
    parts = []
    for part in filter(None, query.split("&")):
        name, equals, value = part.partition("=")
        plain = unquote(value)
        if equals and name in PATH_OPTIONS:
            path, _ = _confined_path(plain, [start], roots, spec)
            part = f"{name}={quote(str(path), safe='/')}"
        elif any(".." in Path(one).parts or one.startswith("/") for one in plain.split(",")):
            # Cities, splits and the like become parts of paths.
            raise _not_allowed(spec, f"the option {name} has the form of a path")
        parts.append(part)
    return "&".join(parts)


def _not_allowed(spec: str, why: str) -> RequestError:
    return RequestError(
        f"the source {spec!r} is not allowed: {why}",
        code="source_not_allowed",
        remedy="Give a path below one of the server's source roots",
    )


def _leaves(path: Path) -> ReferenceDataError:
    return ReferenceDataError(
        "this photo lies outside the source roots",
        where=str(path),
        remedy="Move it below a source root, or remove the row or link that leads there",
        code="source_not_allowed",
    )
