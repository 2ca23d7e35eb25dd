import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("retrieval", {"torch", "timm", "lightning"}),
        ("index_builder", {"torch", "timm", "lightning"}),
        ("service", {"torch", "timm", "lightning", "onnx"}),
    ],
)
def test_no_module_of_a_serving_floor_imports_torch(package: str, forbidden: set[str]) -> None:
    """Two OpenMP runtimes in one process crash, and torch costs gigabytes."""
    script = f"""
import importlib, pkgutil, sys
import {package}
for module in pkgutil.walk_packages({package}.__path__, "{package}."):
    if module.name != "service.jobs.worker":  # a process of its own, which adapts bundles
        importlib.import_module(module.name)
print(sorted({forbidden} & set(sys.modules)), len(sys.modules) > 100)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[] True"
