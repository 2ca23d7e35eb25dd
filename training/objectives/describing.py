"""From two batches of images to what an objective is given: which encoder sees which view."""

from torch import Tensor, nn

from training.objectives.momentum import MomentumEncoder
from training.objectives.objective import DescribedPairs, Objective


def describe_pairs(
    objective: Objective,
    encoder: nn.Module,
    target: MomentumEncoder | None,
    x_images: Tensor,
    y_images: Tensor,
    *,
    negative_images: Tensor | None = None,
    x_positions: Tensor | None = None,
    y_positions: Tensor | None = None,
) -> DescribedPairs:
    """Describe what the objective asks for and nothing else.

    The views go through the encoder one after the other, so that batch statistics are those of one view.

    Args:
        objective: says which views it needs from which encoder.
        encoder: the online encoder, images → descriptors.
        target: the objective's momentum encoder, where it needs one.
        x_images: (N, 3, H, W) float, normalised: the first photo of each pair.
        y_images: (N, 3, H, W) float: the second photo.
        negative_images: (N, K, 3, H, W) float: mined photos of other places, where the objective needs them.
        x_positions: (N, 3) float64, see `DescribedPairs`.
        y_positions: (N, 3) float64.
    """
    assert (target is not None) == objective.needs_target, "a target is needed exactly where the objective says so"
    images = {"x": x_images, "y": y_images}
    online = {view: encoder(images[view]) for view in objective.online_views}
    followed = {view: target(images[view]) for view in objective.target_views} if target is not None else {}
    negatives = None
    if objective.needs_negatives:
        assert negative_images is not None, "the objective needs negatives"
        negatives = encoder(negative_images.flatten(0, 1)).unflatten(0, negative_images.shape[:2])
    return DescribedPairs(
        x=online["x"],
        y=online.get("y"),
        target_x=followed.get("x"),
        target_y=followed.get("y"),
        negatives=negatives,
        x_positions=x_positions,
        y_positions=y_positions,
    )
