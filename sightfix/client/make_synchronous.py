"""Write generated/synchronous.py from asynchronous.py: ``python sightfix/client/make_synchronous.py``.

Each public method of `AsyncSightfixClient` becomes one of `SightfixClient` with the same signature and docstring, which
runs the coroutine on an event loop in a thread. httpx's own blocking client would not do: it bounds each read, not the
whole, so an answer that trickles in would outlast any deadline.
"""

import ast
import subprocess
import sys
from pathlib import Path
from typing import Final

SOURCE: Final = Path(__file__).with_name("asynchronous.py")
TARGET: Final = Path(__file__).parent / "generated" / "synchronous.py"
_HEAD: Final = '''\
"""The client for programs without asyncio. Generated from asynchronous.py by make_synchronous.py: edit that."""

'''
_TAIL: Final = """
    def close(self) -> None:
        \"\"\"Close the connections.\"\"\"
        self._loop.run(self._client.close())
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
"""
_FIRST_LINE: Final = (
    "Talks to one sightfix server over HTTP, for asyncio. Use it in an `async with` block, or call `close`.",
    "Talks to one sightfix server over HTTP. Use it in a `with` block, or call `close`. Safe to share among threads.",
)


def synchronous_source() -> str:
    """The text of generated/synchronous.py, formatted."""
    module = ast.parse(SOURCE.read_text(encoding="utf-8"))
    client = next(node for node in module.body if isinstance(node, ast.ClassDef) and node.name == "AsyncSightfixClient")
    imports = [ast.unparse(node) for node in module.body if isinstance(node, ast.Import | ast.ImportFrom)]
    imports.append("from sightfix.client.asynchronous import AsyncSightfixClient, LoopThread")
    methods = [node for node in client.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    parts = ["\n".join(imports), "\n\nclass SightfixClient:", _docstring(client).replace(*_FIRST_LINE)]
    for method in methods:
        if method.name == "__init__":
            create = f"AsyncSightfixClient({_arguments(method)})"
            parts += [_head(method), f"        self._client = {create}", "        self._loop = LoopThread()\n"]
        elif not method.name.startswith("_") and method.name != "close":
            run = f"self._loop.run(self._client.{method.name}({_arguments(method)}))"
            returns = "" if isinstance(method.returns, ast.Constant) else "return "
            parts += [_head(method), _docstring(method), f"        {returns}{run}\n"]
    return _formatted(_HEAD + "\n".join(parts) + _TAIL)


def _head(method: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    assert method.returns is not None
    return f"    def {method.name}({ast.unparse(method.args)}) -> {ast.unparse(method.returns)}:"


def _docstring(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    text = ast.get_docstring(node, clean=False)
    indent = " " * (node.col_offset + 4)
    return f'{indent}"""{text}"""'


def _arguments(method: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    names = [argument.arg for argument in method.args.args[1:]]
    return ", ".join([*names, *(f"{argument.arg}={argument.arg}" for argument in method.args.kwonlyargs)])


def _formatted(text: str) -> str:
    """Without the imports that only the other client needs, in the style of the repository."""
    ruff = [sys.executable, "-m", "ruff"]
    for arguments in (["check", "--quiet", "--fix-only", "--select", "F401,I"], ["format"]):
        command = [*ruff, *arguments, "--stdin-filename", str(TARGET), "-"]
        text = subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout  # noqa: S603
    return text


if __name__ == "__main__":
    TARGET.write_text(synchronous_source(), encoding="utf-8")
