"""Where a run computes: device, precision and processes by Lightning Fabric, stop signals, memory given back."""

import gc
import signal
import threading
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, Self

import torch
import torch.distributed

from retrieval.errors import ParameterError
from retrieval.machine import give_back_free_pages, keep_freed_memory
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
_STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


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


class StopSignals:
    """While entered, remembers the first SIGTERM or SIGINT; a second SIGINT interrupts at once.

    Does nothing outside the main thread, where Python handles no signals.

    Args:
        fabric: launched. All of its processes make one at the same time.

    Attributes:
        received: the signal, or None.
    """

    def __init__(self, fabric: "Fabric") -> None:
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}
        # Over gloo from CPU to CPU, so that no step waits for the GPU.
        self._group: Any = torch.distributed.new_group(backend="gloo") if fabric.world_size > 1 else None

    def all_reduce_flags(self, save_due: bool) -> bool:
        """Share what one process alone may know: each has its own clock, and a signal may reach one of them only.

        Sets `received` in all processes to a signal that any of them received.

        Args:
            save_due: whether a checkpoint is due in this process.

        Returns:
            Whether one is due in any process.
        """
        if self._group is None:
            return save_due
        flags = torch.tensor([int(save_due), 0 if self.received is None else int(self.received)])
        torch.distributed.all_reduce(flags, op=torch.distributed.ReduceOp.MAX, group=self._group)
        number = int(flags[1])
        self.received = signal.Signals(number) if number else None
        return bool(flags[0])

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._remember) for number in _STOP_SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)


def give_back_freed_memory() -> None:
    """Collect what is unreachable and return free pages to the system, where the C library is glibc.

    It keeps what a training on the CPU has freed for allocations to come; one training after another leaves gigabytes
    that no tensor holds.
    """
    gc.collect()
    give_back_free_pages()
