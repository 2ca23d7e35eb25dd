import math

import numpy as np
import torch

from retrieval.geo import haversine_m, unit_vectors
from tests.training.objectives.batches import positions
from training.objectives.contrastive import same_place


def test_the_border_belongs_to_the_place() -> None:
    here, others = positions([0.0]), positions([0.0, 24.99, 25.0 - 1e-6, 25.01, 1000.0])
    assert same_place(here, others, 25.0).tolist() == [[True, True, True, False, False]]


def test_it_agrees_with_great_circle_distances_everywhere() -> None:
    random = np.random.default_rng(0)
    for lat, lon in [(55.7, 13.2), (0.0, 180.0), (89.9999, -40.0), (-33.9, 18.4)]:
        lats, lons = lat + random.uniform(-3e-4, 3e-4, 40), lon + random.uniform(-3e-4, 3e-4, 40)
        points = torch.from_numpy(unit_vectors(lats, lons))
        by_arc = haversine_m(lats[:, None], lons[:, None], lats, lons) <= 25.0
        assert 0 < by_arc.sum() <= by_arc.size
        assert np.array_equal(same_place(points, points, 25.0).numpy(), by_arc)


def test_nan_is_nowhere() -> None:
    nowhere = torch.full((1, 3), math.nan, dtype=torch.float64)
    assert not same_place(nowhere, nowhere, 1e9).any()
    assert not same_place(positions([0.0]), nowhere, 1e9).any()
