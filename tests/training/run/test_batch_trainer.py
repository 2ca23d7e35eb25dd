"""The optimiser that a recipe gets, and whether its steps go with loss scaling and clipping."""

import pytest
import torch

from tests.training.small_encoder import small_recipe
from training.run.batch_trainer import make_optimiser
from training.torchvision_ops import define_missing_operators


@pytest.mark.parametrize("clip_norm", [0.0, 1.0])
def test_fp16_steps_with_and_without_clipping(clip_norm: float) -> None:
    define_missing_operators()
    from lightning.fabric import Fabric
    from lightning.fabric.plugins import MixedPrecision

    # The scaler of a CPU stands in for a GPU's; fused Adam and Lightning's refusal are the same on both.
    fabric = Fabric(accelerator="cpu", devices=1, plugins=MixedPrecision("16-mixed", device="cpu"))
    recipe = small_recipe("training.precision=fp16", f"training.clip_norm={clip_norm}", "optimiser.learning_rate=0.1")
    net = torch.nn.Linear(4, 4)
    before = net.weight.detach().clone()
    wrapped, optimiser = fabric.setup(net, make_optimiser(recipe, net, on_gpu=True))
    fabric.backward(1e-3 * wrapped(torch.ones(2, 4)).float().sum())
    if clip_norm > 0:
        norm = fabric.clip_gradients(wrapped, optimiser, max_norm=clip_norm, error_if_nonfinite=False)
        # Of the loss itself, not of the scaled one.
        assert float(norm) == pytest.approx(1e-3 * (20 * 4) ** 0.5, rel=1e-2)
    optimiser.step()
    assert not torch.equal(net.weight, before)


@pytest.mark.parametrize(("precision", "clip_norm"), [("fp32", 1.0), ("bf16", 1.0), ("fp16", 0.0)])
def test_other_steps_on_a_gpu_are_fused(precision: str, clip_norm: float) -> None:
    recipe = small_recipe(f"training.precision={precision}", f"training.clip_norm={clip_norm}")
    assert make_optimiser(recipe, torch.nn.Linear(4, 4), on_gpu=True).defaults["fused"]
    assert not make_optimiser(recipe, torch.nn.Linear(4, 4), on_gpu=False).defaults["fused"]
