"""Describe cached photos with the net that is being trained: for mining, for validation."""

from collections.abc import Callable
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from training.encoder import Encoder
from training.evaluation_mode import evaluating
from training.photo_cache import PhotoCache

DEFAULT_BATCH: Final = 64


def describe_cached(
    encoder: Encoder,
    cache: PhotoCache,
    rows: NDArray[np.int64],
    *,
    batch: int = DEFAULT_BATCH,
    on_progress: Callable[[int], None] | None = None,
) -> NDArray[np.float32]:
    """Describe photos without augmentation, in evaluation mode and full precision, on the net's device.

    Args:
        encoder: its net is put back in the mode it was in.
        cache: the decoded photos.
        rows: (n,) of the cache.
        batch: photos at once.
        on_progress: called with the number of photos done since the last call.

    Returns:
        (n, D) float32, unit rows.
    """
    net = encoder.net
    device = next(net.parameters()).device
    described = np.empty((len(rows), encoder.descriptor_dim), np.float32)
    with evaluating(net):
        for begin in range(0, len(rows), batch):
            images = torch.from_numpy(cache.rows(rows[begin : begin + batch])).permute(0, 3, 1, 2).to(device)
            descriptors = net(encoder.normalisation.apply(images))
            described[begin : begin + batch] = descriptors.float().cpu().numpy()
            if on_progress is not None:
                on_progress(len(images))
    return described
