"""The learning rate over a run: a linear warm-up, then constant or half a cosine down to 0."""

import math

from training.recipe_settings import ScheduleSettings


def learning_rate_factor(schedule: ScheduleSettings, progress_epochs: float, epochs: int) -> float:
    """The share of the highest learning rate that the next step takes.

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
