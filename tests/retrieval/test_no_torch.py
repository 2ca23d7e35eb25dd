import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("package", ["retrieval", "index_builder", "service"])
def test_no_module_of_a_serving_floor_imports_torch(package: str) -> None:
    """Two OpenMP runtimes in one process crash, and torch costs gigabytes."""
    script = f"""
import importlib, pkgutil, sys
import {package}
for module in pkgutil.walk_packages({package}.__path__, "{package}."):
    importlib.import_module(module.name)
print(sorted({{"torch", "timm", "onnx", "lightning"}} & set(sys.modules)), len(sys.modules) > 100)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[] True"
