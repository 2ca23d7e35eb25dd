import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def test_torchvision_and_timm_import_after_the_schemas_are_defined_twice() -> None:
    """In a process of its own: torchvision is imported only once in each."""
    script = """
from training.torchvision_ops import define_missing_operators
define_missing_operators()
define_missing_operators()
import timm, torch, torchvision
print(hasattr(torch.ops.torchvision, "nms"), hasattr(torch.ops.torchvision, "qnms"))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["True", "True"]
