"""One batch after another into one net: views, loss, gradients, a step of the optimiser and of the momentum encoder."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from training.encoder import Encoder
from training.objectives.objective import Scalars
from training.objectives.pair_model import PairModel
from training.objectives.registry import build_objective
from training.recipe_settings import Recipe, ScheduleSettings
from training.run.views import PairImages, ViewMaker

if TYPE_CHECKING:
    from lightning.fabric import Fabric


@dataclass(frozen=True, slots=True)
class BatchResult:
    """What a batch gave.

    Attributes:
        loss: scalar on the device, without gradient.
        scalars: more numbers, on the device.
        descriptors: (N, D) of its first views, without gradient.
    """

    loss: Tensor
    scalars: Scalars
    descriptors: Tensor


class BatchTrainer:
    """A recipe's net, objective and optimiser on a device.

    Args:
        recipe: decides everything.
        encoder: its net is trained in place.
        fabric: device, precision, processes.

    Raises:
        ObjectiveError: the objective cannot work on batches of the recipe's size.
    """

    def __init__(self, recipe: Recipe, encoder: Encoder, fabric: "Fabric") -> None:
        self.recipe = recipe
        self.fabric = fabric
        self._views = ViewMaker(recipe, encoder.normalisation)
        objective = build_objective(recipe.objective.name, encoder.descriptor_dim, recipe.objective.settings)
        objective.check_batch_size(recipe.training.pairs * fabric.world_size)
        self.model = PairModel(encoder.net, objective)
        if fabric.world_size > 1 and fabric.device.type == "cuda":
            synchronised: Any = torch.nn.SyncBatchNorm
            self.model = synchronised.convert_sync_batchnorm(self.model)
        if recipe.training.channels_last:
            self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if recipe.training.compile:
            encoder.net.compile()
        optimiser = make_optimiser(recipe, self.model, on_gpu=fabric.device.type == "cuda")
        self._wrapped, self.optimiser = fabric.setup(self.model, optimiser)

    def train_mode(self) -> None:
        """Put everything into training mode, but for frozen batch norms."""
        self.model.train()
        if self.recipe.training.freeze_batch_norm:
            target = self.model.target
            for net in (self.model.net, *([target.encoder] if target is not None else [])):
                for module in net.modules():
                    if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                        module.eval()

    def train(self, images: PairImages, epoch: int, *, rate: float, step: bool) -> BatchResult:
        """Train on one batch.

        What is random is drawn from seed, epoch and the batch's index alone, so that a run can go on anywhere.

        Args:
            images: on any device.
            epoch: from 0.
            rate: learning rate.
            step: whether the optimiser steps now, or gradients add up for the next batch.
        """
        settings = self.recipe.training
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        generator = self._random(epoch, images.index)
        views = self._views(images.to(self.fabric.device), generator)
        with self.fabric.no_backward_sync(self._wrapped, enabled=not step):
            loss, scalars, descriptors = self._wrapped(views)
            self.fabric.backward(loss / settings.accumulation)
        if step:
            if settings.clip_norm > 0:
                self.fabric.clip_gradients(
                    self._wrapped, self.optimiser, max_norm=settings.clip_norm, error_if_nonfinite=False
                )
            self.optimiser.step()
            self.optimiser.zero_grad(set_to_none=True)
            self.model.update_target()
        return BatchResult(loss.detach(), scalars, descriptors)

    def _random(self, epoch: int, index: int) -> torch.Generator:
        """A generator for a batch's views; dropout and the like draw from torch's own state, set here too."""
        seed = int(np.random.SeedSequence([self.recipe.training.seed, epoch, index]).generate_state(1, np.uint64)[0])
        torch.manual_seed(seed >> 1)
        return torch.Generator(self.fabric.device).manual_seed(seed >> 1)


def learning_rate_factor(schedule: ScheduleSettings, progress_epochs: float, epochs: int) -> float:
    """The share of the highest learning rate of the next step: linear warm-up, then constant or half a cosine to 0.

    A function of progress alone, so that resuming needs no state and epochs may differ in their number of steps.

    Args:
        schedule: the recipe's `[schedule]`.
        progress_epochs: epochs trained so far, with the fraction of the running one.
        epochs: of the whole run.

    Returns:
        0 to 1. The first step of a warm-up is above 0 as soon as there is any progress.
    """
    warm_up = min(schedule.warm_up_epochs, float(epochs))
    if progress_epochs < warm_up:
        return progress_epochs / warm_up
    if schedule.name == "constant" or epochs <= warm_up:
        return 1.0
    share = min(1.0, (progress_epochs - warm_up) / (epochs - warm_up))
    return 0.5 * (1.0 + math.cos(math.pi * share))


def make_optimiser(recipe: Recipe, model: torch.nn.Module, *, on_gpu: bool) -> torch.optim.Optimizer:
    """Adam or AdamW; biases, norms and other vectors do not decay.

    Fused on a GPU, except in fp16 with clipping: fused steps take the loss scale away within the step, after the
    gradient's norm had to be known, and Lightning refuses that.

    Args:
        recipe: its `[optimiser]`, `training.precision` and `training.clip_norm`.
        model: what is trained of it requires gradients.
        on_gpu: whether it lies on one.
    """
    fused = on_gpu and not (recipe.training.precision == "fp16" and recipe.training.clip_norm > 0)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    settings = recipe.optimiser
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    kind = torch.optim.AdamW if settings.name == "adamw" else torch.optim.Adam
    return kind(groups, lr=settings.learning_rate, fused=fused or None)
