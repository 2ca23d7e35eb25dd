"""Rows of all processes in one tensor, through which gradients flow back to the process that made them.

How gradients add up: an objective that averages over its own rows, or computes one global loss from gathered rows,
gives each process the gradient of (number of processes × the loss of the whole batch) with respect to its own
descriptors. DistributedDataParallel averages over processes, so parameters get exactly the whole batch's gradient.
"""

import torch
import torch.distributed
from torch import Tensor

from training.torchvision_ops import define_missing_operators


def process_count() -> int:
    """How many processes train together; 1 without torch.distributed."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if distributed else 1


def process_rank() -> int:
    """This process's number, from 0."""
    return torch.distributed.get_rank() if process_count() > 1 else 0


def gathered(rows: Tensor) -> Tensor:
    """All processes' rows in order of rank, with gradient.

    Args:
        rows: (N, …), the same shape in every process.

    Returns:
        (processes · N, …); `rows` itself where there is one process.
    """
    if process_count() == 1:
        return rows
    define_missing_operators()
    from lightly.utils.dist import gather

    return torch.cat(list(gather(rows.contiguous())), dim=0)
