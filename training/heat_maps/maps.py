"""Heat maps of photos: how strongly each location responds, and where the score of a pair comes from."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.encoder import Encoder
from training.evaluation_mode import evaluating
from training.heat_maps.look import Look, look

_AT_ONCE: Final = 16


@dataclass(frozen=True, slots=True)
class HeatMaps:
    """The heat maps of N pairs of photos.

    Attributes:
        scores: (N,) float32, cosine of the two descriptors.
        activation_a, activation_b: (N, h, w) float32, see `activation_maps`.
        match_a, match_b: (N, h, w) float32, see `match_maps`.
    """

    scores: NDArray[np.float32]
    activation_a: NDArray[np.float32]
    activation_b: NDArray[np.float32]
    match_a: NDArray[np.float32]
    match_b: NDArray[np.float32]


def activation_maps(encoder: Encoder, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """How strongly each location responds: the L2 norm over channels of the features that enter pooling.

    Negative features count as zero where GeM clamps them. With L2 per location before pooling the norm is taken before
    it, so the map shows what the net found, not what reaches the descriptor. For class-token pooling the features are
    the patches that enter the last block.

    Args:
        encoder: its net is used where it is, in evaluation mode, and left as it was.
        images: (N, H, W, 3) uint8 RGB, as `decode_image` gives them with `encoder.preprocessing`.

    Returns:
        (N, h, w) float32, not negative.

    Raises:
        ParameterError: the backbone cannot be looked into.
    """
    with evaluating(encoder.net):
        return np.concatenate([_numpy(_look_at(encoder, batch).activation) for batch in _batches(images)])


def match_maps(
    encoder: Encoder, images_a: NDArray[np.uint8], images_b: NDArray[np.uint8]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Where the score of each pair comes from: signed contributions to the cosine of the two descriptors.

    Gradient × activation, the descriptors' lengths held fixed. With GeM the map of either photo adds up to the score,
    less what the bias of a projection adds to every photo's score; with class-token pooling it is a first-order share.
    A photo paired with itself gives each location's share in its own descriptor.

    Args:
        encoder: as `activation_maps`.
        images_a, images_b: (N, H, W, 3) uint8 RGB; row i of one is paired with row i of the other.

    Returns:
        Two of (N, h, w) float32, in units of the score; positive supports the match, negative opposes it.

    Raises:
        ParameterError: the backbone cannot be looked into.
    """
    maps = heat_maps(encoder, images_a, images_b)
    return maps.match_a, maps.match_b


def heat_maps(encoder: Encoder, images_a: NDArray[np.uint8], images_b: NDArray[np.uint8]) -> HeatMaps:
    """Activation maps and match maps of pairs, and their scores; each photo goes through the net once.

    Args, Raises: as `match_maps`.
    """
    if len(images_a) != len(images_b):
        raise ValueError(f"{len(images_a)} photos cannot be paired with {len(images_b)}")
    pieces: list[tuple[NDArray[np.float32], ...]] = []
    with evaluating(encoder.net):
        for batch_a, batch_b in zip(_batches(images_a), _batches(images_b), strict=True):
            a = _look_at(encoder, batch_a)
            b = a if images_b is images_a else _look_at(encoder, batch_b)
            scores = (a.descriptors * b.descriptors).sum(dim=1)
            match_a, match_b = a.contributions(b.descriptors), b.contributions(a.descriptors)
            pieces.append(tuple(map(_numpy, (scores, a.activation, b.activation, match_a, match_b))))
    return HeatMaps(*(np.concatenate(kind) for kind in zip(*pieces, strict=True)))


def _look_at(encoder: Encoder, images: NDArray[np.uint8]) -> Look:
    device = next(encoder.net.parameters()).device
    pixels = torch.tensor(images, device=device).permute(0, 3, 1, 2)  # a copy: memory-mapped photos are read-only
    return look(encoder.net, encoder.normalisation.apply(pixels))


def _batches(images: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise ValueError(f"images are (N, H, W, 3) uint8, not {images.shape} {images.dtype}")
    return (images[begin : begin + _AT_ONCE] for begin in range(0, max(1, len(images)), _AT_ONCE))


def _numpy(values: Tensor) -> NDArray[np.float32]:
    return np.asarray(values.detach().float().cpu().numpy(), np.float32)
