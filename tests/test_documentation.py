"""README and docs against the code: commands, options, Python snippets, links and paths that they name exist."""

import re
import shlex
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
import typer.main

from sightfix.cli import app
from training.recipe_settings import TrainingSettings

ROOT = Path(__file__).parents[1]
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")))
PACKAGES = ("retrieval", "training", "export", "index_builder", "service", "sightfix")
FOLDERS = (*PACKAGES, "tests", "benchmarks", "docs", "examples", "deploy")

# Of docker, which pages name too.
FOREIGN_OPTIONS = frozenset({"--gpus", "--target"})

# A fenced block, or lines that are indented like code.
CODE = re.compile(r"^( *)```[^\n]*\n.*?^\1```|^(?: {4}[^\n]*\n)+", re.MULTILINE | re.DOTALL)
IMPORT = re.compile(
    rf"^ *(?:from ((?:{'|'.join(PACKAGES)})[\w.]*) import ([\w, ]+)|import ((?:{'|'.join(PACKAGES)})[\w.]*))", re.M
)
INLINE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ +(.*)$", re.MULTILINE)


@cache
def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


@cache
def command_tree() -> typer.main.TyperGroup:
    command = typer.main.get_command(app)
    assert isinstance(command, typer.main.TyperGroup)
    return command


def options_of(command: object) -> set[str]:
    params = getattr(command, "params", [])
    return {"--help", *(option for param in params for option in (*param.opts, *param.secondary_opts))}


def all_options() -> set[str]:
    found: set[str] = set()
    waiting: list[object] = [command_tree()]
    while waiting:
        command = waiting.pop()
        found |= options_of(command)
        waiting += getattr(command, "commands", {}).values()
    return found


def code_of(text: str) -> list[str]:
    return [match[0] for match in CODE.finditer(text)]


def prose_of(text: str) -> str:
    return CODE.sub("\n", text)


def command_lines(text: str) -> Iterator[str]:
    """Every `sightfix …` in code blocks and inline code, one command each."""
    for code in [*code_of(text), *INLINE.findall(prose_of(text))]:
        for line in code.replace("\\\n", " ").splitlines():
            found = re.search(r"(?:^|[;&|$(]|&&)\s*(?:\w+=\S+ +)*(sightfix +.*)$", line.strip())
            if found:
                yield found[1]


def words_of(line: str) -> list[str]:
    """The words of one command: without comment, brackets of synopses, and what follows a pipe."""
    lexer = shlex.shlex(line.replace("[", " ").replace("]", " "), posix=True, punctuation_chars="|&;<>()")
    lexer.whitespace_split = True
    words: list[str] = []
    for word in lexer:
        if word and set(word) <= set("|&;<>()"):
            break
        words.append(word)
    return words


def problem_of(line: str) -> str | None:
    """What is wrong with a command line, or None."""
    words = words_of(line)[1:]
    command: object = command_tree()
    while words and (commands := getattr(command, "commands", None)):
        if words[0].startswith("-") and words[0] in options_of(command):
            return None
        if words[0] in commands:
            command = commands[words.pop(0)]
        elif "build" in commands:  # `sightfix index PHOTOS`
            command = commands["build"]
        elif words[0] in {"…", "COMMAND"}:
            return None
        else:
            return f"there is no command {words[0]!r}"
    known = options_of(command)
    wrong = [word for word in words if re.match(r"--[a-z]", word) and word.partition("=")[0] not in known]
    return f"{getattr(command, 'name', '')} has no option {', '.join(wrong)}" if wrong else None


@pytest.mark.parametrize("page", PAGES)
def test_commands_exist(page: str) -> None:
    problems = [f"{line}: {problem}" for line in command_lines(text_of(page)) if (problem := problem_of(line))]
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("page", PAGES)
def test_options_exist(page: str) -> None:
    """Options that stand alone in the text, as in: give `--name`."""
    named = {
        match[1]
        for code in INLINE.findall(prose_of(text_of(page)))
        if (match := re.match(r"(--[a-z][a-z0-9-]*)", code))
    }
    assert not named - all_options() - FOREIGN_OPTIONS


@pytest.mark.parametrize("page", PAGES)
def test_python_snippets_import(page: str) -> None:
    for code in code_of(text_of(page)):
        for origin, names, module in IMPORT.findall(code):
            imported = import_module(origin or module)
            for name in (part.split()[0] for part in names.split(",") if part.strip()):
                is_there = hasattr(imported, name) or find_spec(f"{imported.__name__}.{name}") is not None
                assert is_there, f"{origin} has no {name}"


def anchors(page: Path) -> set[str]:
    """The anchors that a page's headings get on GitHub."""
    found: set[str] = set()
    for heading in HEADING.findall(prose_of(page.read_text(encoding="utf-8"))):
        plain = re.sub(r"[^\w\- ]", "", re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).strip().lower())
        found.add(plain.replace(" ", "-"))
    return found


@pytest.mark.parametrize("page", PAGES)
def test_links_resolve(page: str) -> None:
    problems = []
    for target in LINK.findall(prose_of(text_of(page))):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        if not file.exists() or (anchor and file.suffix == ".md" and anchor not in anchors(file)):
            problems.append(target)
    assert not problems


@pytest.mark.parametrize("page", PAGES)
def test_paths_and_modules_exist(page: str) -> None:
    """`folder/file.py`, `folder/file.py:name` and `package.module.name` in the text are in the repository."""
    problems = []
    for code in INLINE.findall(prose_of(text_of(page))):
        if re.fullmatch(rf"({'|'.join(FOLDERS)})/[\w./-]+(:[\w.]+)?", code):
            path, _, name = code.partition(":")
            file = ROOT / path
            last = name.rpartition(".")[2]
            if not file.exists() or (name and not re.search(rf"\b{last}\b", file.read_text(encoding="utf-8"))):
                problems.append(code)
        elif re.fullmatch(rf"({'|'.join(PACKAGES)})(\.\w+)+(\(.*\))?", code) and not _is_module(code.partition("(")[0]):
            problems.append(code)
    assert not problems


def _is_module(dotted: str) -> bool:
    """Whether a dotted name is a module, a name in one, a key of a recipe, or in the gRPC package."""
    parts = dotted.split(".")
    if parts[:2] == ["sightfix", "v1"] or (parts[0] == "training" and parts[1] in TrainingSettings.model_fields):
        return True
    for end in range(len(parts), 0, -1):
        path = ROOT.joinpath(*parts[:end])
        file = path.with_suffix(".py") if path.with_suffix(".py").is_file() else path / "__init__.py"
        if file.is_file():
            rest = parts[end:]
            return not rest or bool(re.search(rf"\b{rest[0]}\b", file.read_text(encoding="utf-8")))
    return False
