"""How the product's modules hang together: no circles, no private names of others, no crowded folders."""

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGES = ("retrieval", "training", "export", "index_builder", "service", "sightfix")
GENERATED = REPOSITORY / "service" / "grpc" / "generated"
MOST_ENTRIES = 16


def product_files() -> Iterator[Path]:
    for package in PACKAGES:
        for path in sorted((REPOSITORY / package).rglob("*.py")):
            if GENERATED not in path.parents:
                yield path


def name_of(path: Path) -> str:
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in product_files()}


def imports_of(path: Path) -> Iterator[tuple[ast.ImportFrom | ast.Import, str, str | None]]:
    """Each import of a module, inside functions too: its node, the module, and the name; not those for typing only."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for_typing: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            for_typing.update(inner for statement in node.body for inner in ast.walk(statement))
    for node in ast.walk(tree):
        if node in for_typing:
            continue
        if isinstance(node, ast.Import):
            yield from ((node, alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from ((node, node.module, alias.name) for alias in node.names)


def test_modules_import_each_other_in_no_circle() -> None:
    graph: dict[str, set[str]] = {}
    for module, path in MODULES.items():
        targets = {
            f"{source}.{name}" if f"{source}.{name}" in MODULES else source for _, source, name in imports_of(path)
        }
        graph[module] = {target for target in targets if target in MODULES and target != module}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail("modules import each other in a circle: " + " <- ".join(error.args[1]))


def test_no_module_imports_a_private_name_of_another() -> None:
    private = [
        f"{path.relative_to(REPOSITORY)}:{node.lineno}: {source}.{name}"
        for path in MODULES.values()
        for node, source, name in imports_of(path)
        if name is not None and name.startswith("_") and not name.startswith("__") and source.split(".")[0] in PACKAGES
    ]
    assert not private


def test_no_module_reads_a_private_attribute_of_another() -> None:
    """An attribute is a module's own where some class or function of it has that name."""
    private = []
    for path in MODULES.values():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        own = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and _is_self(node.value)}
        own |= {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
        own |= {
            node.target.id
            for node in ast.walk(tree)
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
        }
        private += [
            f"{path.relative_to(REPOSITORY)}:{node.lineno}: {ast.unparse(node)}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute)
            and node.attr.startswith("_")
            and not node.attr.startswith("__")
            and node.attr not in own
            and not ast.unparse(node).startswith("torch.")  # what PyTorch has under no other name
        ]
    assert not private


def _is_self(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def test_no_folder_has_more_than_sixteen_entries() -> None:
    crowded = {}
    for folder in {path.parent for path in MODULES.values()}:
        entries = [entry for entry in folder.iterdir() if entry.name not in ("__init__.py", "__pycache__")]
        if len(entries) > MOST_ENTRIES:
            crowded[str(folder.relative_to(REPOSITORY))] = len(entries)
    assert not crowded
