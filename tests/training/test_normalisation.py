import pytest
import torch
from pydantic import ValidationError

from training.backbones import InputNormalisation


def test_the_usual_convention_in_8_bit_units() -> None:
    normalisation = InputNormalisation.of_unit_range((0.0, 0.5, 1.0), (0.2, 0.4, 1.0))
    assert normalisation.mean == (0.0, 127.5, 255.0)
    assert normalisation.std == (51.0, 102.0, 255.0)


def test_pixels_by_hand() -> None:
    normalisation = InputNormalisation(mean=(0.0, 100.0, 200.0), std=(1.0, 10.0, 100.0))
    images = torch.tensor([10, 120, 100], dtype=torch.uint8).reshape(1, 3, 1, 1)
    assert normalisation.apply(images).flatten().tolist() == [10.0, 2.0, -1.0]
    assert normalisation.apply(images.double()).dtype == torch.float64


def test_a_spread_of_zero_is_refused() -> None:
    with pytest.raises(ValidationError, match="greater than 0"):
        InputNormalisation(mean=(0.0, 0.0, 0.0), std=(1.0, 0.0, 1.0))
