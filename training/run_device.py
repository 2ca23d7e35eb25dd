"""Where a run computes, and in which precision: Lightning Fabric, set up with clear errors."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import torch

from retrieval.errors import ParameterError
from retrieval.machine import keep_freed_memory
from training.recipe_settings import TrainingSettings
from training.torchvision_ops import define_missing_operators

if TYPE_CHECKING:
    from lightning.fabric import Fabric

DeviceName = Literal["auto", "cpu", "cuda"]

_PRECISIONS: Final[dict[str, Literal["32-true", "bf16-mixed", "16-mixed"]]] = {
    "fp32": "32-true",
    "bf16": "bf16-mixed",
    "fp16": "16-mixed",
}


@dataclass(frozen=True, slots=True)
class DeviceSettings:
    """Where to train.

    Attributes:
        device: `cuda`, `cpu`, or `auto` for the first of these that there is.
        processes: devices that train together, one process each (DistributedDataParallel).
        loader_workers: processes that load batches ahead; None: four for a GPU, none on a CPU, whose cores are busy.
    """

    device: DeviceName = "auto"
    processes: int = 1
    loader_workers: int | None = None


def make_fabric(settings: DeviceSettings, training: TrainingSettings) -> "Fabric":
    """Lightning Fabric for a recipe's precision on the wanted device.

    Raises:
        ParameterError: no such device, fewer of them than asked for, or a precision that it cannot compute in.
    """
    device = _device(settings.device)
    if settings.processes < 1:
        raise ParameterError(f"{settings.processes} devices cannot train", remedy="Give 1 or more")
    if device == "cuda" and settings.processes > torch.cuda.device_count():
        raise ParameterError(
            f"{settings.processes} GPUs are asked for, there are {torch.cuda.device_count()}",
            remedy="Lower --devices",
        )
    if device == "cpu" and training.precision == "fp16":
        raise ParameterError(
            "fp16 needs a GPU", where="training.precision", remedy="Add --set training.precision=fp32, or bf16"
        )
    if device == "cuda":
        torch.set_float32_matmul_precision("high")
    else:
        keep_freed_memory()  # a step's tensors fit where those of the step before were
    define_missing_operators()  # Lightning imports torchvision
    from lightning.fabric import Fabric

    return Fabric(
        accelerator=device,
        devices=settings.processes,
        strategy="ddp" if settings.processes > 1 else "auto",
        precision=_PRECISIONS[training.precision],
    )


def _device(wanted: DeviceName) -> Literal["cpu", "cuda"]:
    if wanted not in ("auto", "cpu", "cuda"):
        raise ParameterError(f"the device {wanted!r} is unknown", remedy="Choose auto, cpu or cuda")
    there = torch.cuda.is_available()
    if wanted == "cuda" and not there:
        raise ParameterError(
            "there is no GPU that PyTorch can use",
            remedy="Choose --device cpu, or install a CUDA build of PyTorch and a driver",
            code="no_gpu",
        )
    return "cuda" if wanted == "cuda" or (wanted == "auto" and there) else "cpu"
