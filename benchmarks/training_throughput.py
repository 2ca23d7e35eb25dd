"""Step time of a real training run over bare forward, backward and step on tensors already in memory.

Both in one run, step by step in turn: after each batch of the run, the same net (a copy with an optimiser of its own)
trains on views that lie ready in memory. What the run adds is reading photos, augmenting, scheduling and logging.
"""

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from benchmarks.campus import campus_references
from benchmarks.machine import describe_machine
from training.objectives.pair_model import PairModel, PairViews
from training.photos.cache import fill_photo_cache
from training.recipe import load_recipe
from training.recipe_settings import Recipe
from training.run.device import DeviceSettings
from training.run.observing import RunObserver
from training.run.training_run import TrainingRun

TARGET = {"cpu": 1.10, "cuda": 1.15}
WARM_UP_STEPS = 3


class _EnoughError(Exception):
    """Enough steps were timed."""


class _BareSteps(RunObserver):
    """Takes a bare step after each batch of the run."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.ours: list[float] = []
        self.bare: list[float] = []
        self.run: TrainingRun | None = None

    @contextmanager
    def work(self, what: str, total: int, unit: str = "photos") -> Iterator[Callable[[int], None]]:
        if not what.startswith("Epoch"):
            yield lambda done: None
            return
        assert self.run is not None
        model, device = copy.deepcopy(self.run.model), self.run.device
        views = _views(self.run.recipe, device)
        optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], fused=device.type == "cuda")
        began = time.perf_counter()

        def advance(photos: int) -> None:
            nonlocal began
            _finish(device)
            self.ours.append(time.perf_counter() - began)
            began = time.perf_counter()
            _bare_step(self.run.recipe, model, optimiser, views)
            _finish(device)
            self.bare.append(time.perf_counter() - began)
            if len(self.ours) >= self.steps + WARM_UP_STEPS:
                raise _EnoughError
            began = time.perf_counter()

        yield advance


def _views(recipe: Recipe, device: torch.device) -> PairViews:
    pairs, height, width = recipe.training.pairs, recipe.image.height, recipe.image.width
    generator = torch.Generator().manual_seed(0)

    def images() -> torch.Tensor:
        drawn = torch.randn(pairs, 3, height, width, generator=generator)
        return drawn.to(device).contiguous(memory_format=torch.channels_last)

    points = torch.nn.functional.normalize(torch.randn(pairs, 3, dtype=torch.float64, generator=generator)).to(device)
    return PairViews(images(), images(), None, points, points)


def _bare_step(recipe: Recipe, model: PairModel, optimiser: torch.optim.Optimizer, views: PairViews) -> None:
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(recipe.training.precision)
    device = views.x.device.type
    with torch.autocast(device, dtype=half, enabled=half is not None):
        loss, _, _ = model(views)
    loss.backward()
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", default="simclr-efficientnet-lite0")
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--steps", type=int, default=40)
    arguments = parser.parse_args()
    # Few pairs fit apart on the campus; the same number in every batch makes steps comparable.
    fixed = ["geopair.batch_separation_m=1", "validation.patience=0"]
    recipe = load_recipe(arguments.recipe, [*fixed, *arguments.overrides])
    with tempfile.TemporaryDirectory() as folder:
        cache = fill_photo_cache(Path(folder) / "cache", campus_references(), recipe.image)
        bare = _BareSteps(arguments.steps)
        bare.run = TrainingRun(
            recipe,
            cache,
            None,
            Path(folder) / "run",
            photos_name="campus",
            device=DeviceSettings(arguments.device),
            observer=bare,
        )
        with suppress(_EnoughError):
            bare.run.run()
        device = bare.run.device
    ours, theirs = bare.ours[WARM_UP_STEPS:], bare.bare[WARM_UP_STEPS:]
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    print(f"training step / bare step; {describe_machine()}, torch {torch.__version__}, {device.type}")
    print(
        f"{recipe.name}, {recipe.training.pairs} pairs of {recipe.image.height}x{recipe.image.width}, "
        f"{recipe.training.precision}: ours {1000 * statistics.median(ours):.1f} ms, "
        f"bare {1000 * statistics.median(theirs):.1f} ms, {len(ours)} steps each in turn"
    )
    quarters = statistics.quantiles(ratios, n=4)
    ratio = statistics.median(ours) / statistics.median(theirs)
    print(
        f"ratio of medians {ratio:.3f} (step by step: quartiles {quarters[0]:.3f} to {quarters[2]:.3f}); "
        f"target at most {TARGET[device.type]:.2f}"
    )


if __name__ == "__main__":
    main()
