"""What several processes must do at the same step: each has its own clock, and a signal may reach one of them only.

Told over gloo from CPU to CPU, so that no step waits for the GPU.
"""

import signal
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed

if TYPE_CHECKING:
    from lightning.fabric import Fabric


class Agreement:
    """All processes of a run save and stop together.

    Args:
        fabric: launched; with one process nothing is exchanged.
    """

    def __init__(self, fabric: "Fabric") -> None:
        several = fabric.world_size > 1
        self._group: Any = torch.distributed.new_group(backend="gloo") if several else None

    def on(self, due: bool, received: signal.Signals | None) -> tuple[bool, signal.Signals | None]:
        """Whether a checkpoint is due in any process, and a signal that any of them received; the same in all.

        Args:
            due: in this process.
            received: by this process.
        """
        if self._group is None:
            return due, received
        told = torch.tensor([int(due), 0 if received is None else int(received)])
        torch.distributed.all_reduce(told, op=torch.distributed.ReduceOp.MAX, group=self._group)
        number = int(told[1])
        return bool(told[0]), signal.Signals(number) if number else None
