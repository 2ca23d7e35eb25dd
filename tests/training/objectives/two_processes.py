"""What each of two gloo processes does: its half of a batch, through DistributedDataParallel."""

from pathlib import Path

import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from training.objectives.objective import DescribedPairs, Objective
from training.objectives.registry import build_objective

# No batch norm: between processes its statistics are the loop's business (SyncBatchNorm, which needs GPUs).
CASES = {
    "triplet": {"margin": 1.0},
    "simclr": {"head_width": 6},
    "mocov2": {"queue_size": 21, "head_layers": 1, "head_width": 6},
    "byol": {"head_layers": 1, "head_width": 6},
    "simsiam": {"head_layers": 1, "head_width": 6},
    "barlow_twins": {"head_layers": 1, "head_width": 6},
    "vicreg": {"head_layers": 1, "head_width": 6},
}


class Trained(nn.Module):
    """An encoder and its objective, so that one backward pass reaches both."""

    def __init__(self, name: str) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.encoder = nn.Linear(5, 5)
        self.objective: Objective = build_objective(name, 5, CASES[name])
        if hasattr(self.objective, "predictor"):
            self.objective.predictor = nn.Linear(6, 6)
        self.double()

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        described = {
            view: nn.functional.normalize(self.encoder(batch[view]), dim=-1) for view in ("x", "y", "negatives")
        }
        needed = {view: described[view] for view in self.objective.online_views}
        if self.objective.needs_negatives:
            needed["negatives"] = described["negatives"]
        given = {name: batch[name] for name in ("target_x", "target_y", "x_positions", "y_positions")}
        loss, _ = self.objective(DescribedPairs(**needed, **given))
        return loss


def outcome(trained: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    """The loss, every parameter's gradient, and every buffer after the step."""
    slopes = {name: parameter.grad for name, parameter in trained.named_parameters()}
    return {"loss": loss.detach(), **slopes, **dict(trained.named_buffers())}


def one_process(batch: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """What the whole batch gives in one process, by objective."""
    outcomes = {}
    for name in CASES:
        trained = Trained(name)
        loss = trained(batch)
        loss.backward()
        outcomes[name] = outcome(trained, loss)
    return outcomes


def half(rank: int, batch: dict[str, Tensor], folder: str) -> None:
    """The same with this process's half of the batch; the loss is averaged over the two."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    outcomes = {}
    for name in CASES:
        trained = Trained(name)
        # Held until after the backward pass: its hooks, which average the gradients, go with it.
        parallel = DistributedDataParallel(trained)
        loss = parallel({key: rows.chunk(2)[rank] for key, rows in batch.items()})
        loss.backward()
        mean = loss.detach() / 2
        torch.distributed.all_reduce(mean)
        outcomes[name] = outcome(trained, mean)
    torch.save(outcomes, Path(folder) / f"{rank}.pt")
    torch.distributed.destroy_process_group()
