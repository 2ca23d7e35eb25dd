"""The vocabularies that VLAD begins with: fitted to photos that are trained on as to those of a place."""

from collections.abc import Callable, Iterator
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from retrieval.bundle import DenseOutput
from retrieval.bundle.vlad import AdaptationSettings, fit_vocabulary
from retrieval.errors import ParameterError
from training.descriptor_net import Vlad, VladOfLayers
from training.encoder import Encoder, evaluating
from training.photos.cache import PhotoCache

_MOST_PHOTOS: Final = 512
_PHOTOS_AT_ONCE: Final = 32


def photos_to_learn_from(photos: PhotoCache) -> int:
    """How many photos `learn_vocabulary` looks at."""
    return min(len(photos), _MOST_PHOTOS)


def learn_vocabulary(
    encoder: Encoder, photos: PhotoCache, seed: int, *, on_progress: Callable[[int], None] = lambda _: None
) -> None:
    """Fit the vocabularies of a net that aggregates by VLAD, in place; torch's random state is left alone.

    Args:
        encoder: on any device.
        photos: to train on; local descriptors come from up to 512 of them, 60,000 of each layer at most.
        seed: of the choice of photos and local descriptors; the same seed gives the same centroids.
        on_progress: called with the number of photos done since the last call.

    Raises:
        ParameterError: there are fewer than 16 local descriptors for a centroid.
    """
    pool = encoder.net.pool
    assert isinstance(pool, VladOfLayers), "the net does not aggregate by VLAD"
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.permutation(len(photos))[: photos_to_learn_from(photos)])
    batches = list(_drawn_cells(encoder, photos, rows, rng, on_progress))
    for place, (part, layer) in enumerate(zip(pool.parts, encoder.net.layers, strict=True)):
        assert isinstance(part, Vlad)
        settings = AdaptationSettings(centroids=len(part.centroids))
        dense = DenseOutput(tensor=layer.module, layer=layer.name, channels=layer.channels)
        vocabulary = fit_vocabulary(dense, [batch[place] for batch in batches], settings)
        if len(vocabulary.centroids) < settings.centroids:
            raise ParameterError(
                f"{vocabulary.fitted_on} local descriptors of {layer.name} are too few for {settings.centroids} "
                "centroids",
                remedy="Lower network.centroids, or give more photos",
            )
        part.begin_with(vocabulary)


def _drawn_cells(
    encoder: Encoder,
    photos: PhotoCache,
    rows: NDArray[np.int64],
    rng: np.random.Generator,
    on_progress: Callable[[int], None],
) -> Iterator[list[NDArray[np.float32]]]:
    """Of each batch of photos (n, C, m, 1) float32 of each layer: m cells of each photo, as many of every one."""
    net = encoder.net
    device = next(net.parameters()).device
    each = max(1, AdaptationSettings.local_descriptors // len(rows))
    for begin in range(0, len(rows), _PHOTOS_AT_ONCE):
        with evaluating(net):
            images = torch.from_numpy(photos.rows(rows[begin : begin + _PHOTOS_AT_ONCE])).permute(0, 3, 1, 2).to(device)
            maps = net.local_descriptors(encoder.normalisation.apply(images))
        found = []
        for spatial in maps:
            local = spatial.float().flatten(2).cpu().numpy()
            cells = np.argsort(rng.random((len(local), 1, local.shape[2])), axis=2)[:, :, :each]
            found.append(np.take_along_axis(local, cells, axis=2)[..., None])
        yield found
        on_progress(len(images))
