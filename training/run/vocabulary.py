"""The vocabularies that VLAD begins with: k-means on local descriptors of the photos that are trained on."""

import math
from collections.abc import Callable, Iterator
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from retrieval.errors import ParameterError
from retrieval.index.vectors.faiss_library import faiss_module
from training.descriptor_net import Vlad, VladOfLayers
from training.encoder import Encoder, evaluating
from training.photos.cache import PhotoCache

_MOST_PHOTOS: Final = 512
_MOST_LOCAL_DESCRIPTORS: Final = 60_000
_KMEANS_STEPS: Final = 20
_PHOTOS_AT_ONCE: Final = 32


def photos_to_learn_from(photos: PhotoCache) -> int:
    """How many photos `learn_vocabulary` looks at."""
    return min(len(photos), _MOST_PHOTOS)


def learn_vocabulary(
    encoder: Encoder, photos: PhotoCache, seed: int, *, on_progress: Callable[[int], None] = lambda _: None
) -> None:
    """Set the centroids of a net that aggregates by VLAD, in place; torch's random state is left alone.

    Args:
        encoder: on any device.
        photos: to train on; local descriptors come from up to 512 of them, 60,000 of each layer at most.
        seed: of the choice of photos and local descriptors and of k-means; the same seed gives the same centroids.
        on_progress: called with the number of photos done since the last call.

    Raises:
        ParameterError: there are fewer local descriptors than centroids.
    """
    pool = encoder.net.pool
    assert isinstance(pool, VladOfLayers), "the net does not aggregate by VLAD"
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.permutation(len(photos))[: photos_to_learn_from(photos)])
    batches = list(_local_descriptors(encoder, photos, rows, rng, on_progress))
    for place, (part, layer) in enumerate(zip(pool.parts, encoder.net.layers, strict=True)):
        assert isinstance(part, Vlad)
        local = np.concatenate([batch[place] for batch in batches])
        count = len(part.centroids)
        if len(local) < count:
            raise ParameterError(
                f"{len(local)} local descriptors of {layer.name} are too few for {count} centroids",
                remedy="Lower network.centroids, or give more photos",
            )
        kmeans = faiss_module().Kmeans(
            local.shape[1],
            count,
            niter=_KMEANS_STEPS,
            seed=seed % 2**31,
            min_points_per_centroid=1,
            max_points_per_centroid=len(local),
        )
        kmeans.train(local)
        with torch.no_grad():
            part.centroids.copy_(torch.from_numpy(np.asarray(kmeans.centroids, np.float32)))


def _local_descriptors(
    encoder: Encoder,
    photos: PhotoCache,
    rows: NDArray[np.int64],
    rng: np.random.Generator,
    on_progress: Callable[[int], None],
) -> Iterator[list[NDArray[np.float32]]]:
    """Of each batch of photos (n, C) float32 unit rows of each layer, as many of one photo as of another."""
    net = encoder.net
    assert isinstance(net.pool, VladOfLayers)
    device = next(net.parameters()).device
    each = math.ceil(_MOST_LOCAL_DESCRIPTORS / len(rows))
    for begin in range(0, len(rows), _PHOTOS_AT_ONCE):
        with evaluating(net):
            images = torch.from_numpy(photos.rows(rows[begin : begin + _PHOTOS_AT_ONCE])).permute(0, 3, 1, 2).to(device)
            maps = net.local_descriptors(encoder.normalisation.apply(images))
            found = []
            for part, spatial in zip(net.pool.parts, maps, strict=True):
                assert isinstance(part, Vlad)
                local = part.assign(spatial.float())[0].cpu().numpy()
                cells = np.argsort(rng.random(local.shape[:2]), axis=1)[:, :each, None]
                found.append(np.take_along_axis(local, cells, axis=1).reshape(-1, local.shape[2]))
        yield found
        on_progress(len(images))
