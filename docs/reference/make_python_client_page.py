"""Write python-client.md from the signatures and docstrings: ``python docs/reference/make_python_client_page.py``."""

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from sightfix.client import ProblemError, RetryPolicy, SightfixClient, encode_photo
from sightfix.client.answers import BatchItem, Description, IndexListing, IndexVersion, ServerInfo
from sightfix.client.grpc_stream import FrameOutcome, FrameStream

PAGE: Final = Path(__file__).with_name("python-client.md")

_HEAD: Final = """# Python client

`pip install sightfix` brings it; it needs no runtime and no index library. How to use it: [Localize
photos](../how-to/localize-photos.md), [Use it on a robot](../how-to/robots.md), [Re-index](../how-to/re-index.md).

```python
from pathlib import Path
from sightfix.client import GeoPrior, SightfixClient

with SightfixClient("http://127.0.0.1:8080", resize="model") as client:
    answer = client.localize(Path("photo.jpg"), top_k=5, geo_prior=GeoPrior(55.6983, 13.1951, 500))
```

Answers are frozen pydantic models with the fields of the [HTTP interface](http.md); fields that a newer server adds are
ignored. `AsyncSightfixClient` has the same constructor and the same methods, to be awaited, and is used in `async with`.

| in the signatures | |
|---|---|
| `Photo` | a `Path`, encoded `bytes`, an (H, W, 3) uint8 RGB array, a Pillow image |
| `Lane` | `"robot"`, `"bulk"` |
| `Resize` | `"model"`, a `Preprocessing`, None |
| `Verify` | bool, the `Path` of a PEM file, an `ssl.SSLContext` |
| `Certificate` | the `Path`s of our certificate and its key |
| `Odometry` | `Speed`, `Distance` or `Displacement` |
| `TrackParameters`, `TrackedAnswer` | [Tracks](http.md) |
| `JobRequest`, `Job`, `JobPage`, `JobFailurePage` | [Jobs](jobs.md) |

## What is tried again

| | |
|---|---|
| no connection; 429, 503 | always: the server has done nothing |
| a connection that broke; 408, 502 | what may be done twice: everything but `activate`, `open_track`, `close_track`. A job has a key, so that it starts once |
| a time-out; every other status | never |

Pauses are drawn at random below `base_s`, doubled each time, and come on top of what `Retry-After` asks for. A pause that would
end after the call's deadline, or after `total_s`, is not begun: the refusal is raised at once. `deadline_ms` bounds the whole
call, to the last byte, and is sent to the server, which then refuses at once what it cannot answer in time.

## Errors

All are `SightfixError`, with `what`, `where`, `remedy` and a stable `code`.

| | |
|---|---|
| `ProblemError` | the server refused: `status`, `problem` (RFC 9457), `retry_after_s`; `code` is [the server's](http.md#errors) |
| `ServerError` | `server_unreachable`, `connection_lost`, `server_timeout`, `preprocessing_unknown`, `job_unfinished`; on a stream `grpc_unavailable` and the like |
| `ImageError` | the photo cannot be read here, or is of no format that a server accepts |
| `ParameterError` | an argument that makes no sense |
"""  # noqa: E501

_FRAMES: Final = """`from sightfix.client.grpc_stream import FrameStream`. What the server does with frames:
[gRPC interface](grpc.md#localizestream)."""

_SECTIONS: Final = {
    "Photos": ("localize", "localize_batch", "describe", "search"),
    "Tracks": ("open_track", "localize_frame", "close_track"),
    "The server": ("info", "is_ready", "wait_until_ready"),
    "Versions and jobs": (
        "indexes",
        "index",
        "activate",
        "create_job",
        "get_job",
        "list_jobs",
        "list_job_failures",
        "cancel_job",
        "wait_for_job",
    ),
}


def page() -> str:
    """The whole page."""
    parts = [_HEAD, "## `SightfixClient`", _of(SightfixClient)]
    for title, names in _SECTIONS.items():
        parts += [f"### {title}", *(_of(getattr(SightfixClient, name)) for name in names)]
    parts += ["## `FrameStream`", _FRAMES, _of(FrameStream)]
    parts += [_of(method) for _, method in _methods(FrameStream)]
    parts += ["## What they take and give"]
    parts += map(_of, (encode_photo, RetryPolicy, FrameOutcome, ServerInfo, IndexListing, IndexVersion, BatchItem))
    parts += map(_of, (Description, ProblemError))
    return "\n\n".join(parts) + "\n"


def _methods(kind: type) -> Iterator[tuple[str, object]]:
    return ((name, member) for name, member in vars(kind).items() if inspect.isfunction(member) and name[0] != "_")


def _of(thing: object) -> str:
    """Signature and docstring of a class, a function or a method."""
    assert callable(thing)
    text = inspect.getdoc(thing) or ""
    head = thing.__name__ + _signature(thing)
    return f"```python\n{head}\n```\n\n{_markdown(text)}"


def _signature(thing: object) -> str:
    """As it is written, with the names of the types."""
    assert callable(thing)
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(thing))).body
    if isinstance(node, ast.ClassDef):
        inits = [part for part in node.body if isinstance(part, ast.FunctionDef) and part.name == "__init__"]
        fields = [ast.unparse(part) for part in node.body if isinstance(part, ast.AnnAssign)]
        parts, result = _split(ast.unparse(inits[0].args)) if inits else fields, ""
    else:
        assert isinstance(node, ast.FunctionDef)
        assert node.returns is not None
        parts, result = _split(ast.unparse(node.args)), f" -> {ast.unparse(node.returns)}"
    parts = [re.sub(r"^(\w+: .+[^ ])=(?=[^=]*$)", r"\1 = ", part) for part in parts if part not in ("self", "")]
    # Types that are imported for annotations only stand in quotes.
    parts = [re.sub(r"^(\w+): '([\w.]+)'", r"\1: \2", part) for part in parts]
    flat = f"({', '.join(parts)}){result}"
    if len(flat) <= 100:
        return flat
    lines = "".join(f"\n    {part}," for part in parts)
    return f"({lines}\n){result}"


def _split(text: str) -> list[str]:
    """At the commas that are in no bracket."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "[(") - (letter in "])")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def _markdown(text: str) -> str:
    """A docstring with its sections as lists."""
    lines: list[str] = []
    for line in text.replace("``", "`").splitlines():
        if re.fullmatch(r"(Args|Attributes|Returns|Raises):", line):
            lines += [line, ""]
        elif re.match(r" {4}\S", line):
            lines.append("- " + line.strip())
        elif line.startswith("        "):
            lines[-1] += " " + line.strip()
        else:
            lines.append(line)
    return "\n".join(lines).strip()


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
