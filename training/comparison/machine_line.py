"""One line that says with what a run was made."""

import platform
from importlib.metadata import version

import torch

from retrieval import __version__
from retrieval.machine import available_cores


def machine_line(device: torch.device) -> str:
    """Versions, and the processor that computed."""
    cores = available_cores()
    cpu = f"{platform.machine()} CPU, {cores} {'core' if cores == 1 else 'cores'}"
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu
    return (
        f"sightfix {__version__}, PyTorch {torch.__version__}, timm {version('timm')}, "
        f"Python {platform.python_version()}; {where}"
    )
