"""Which numbers a net wants to see in place of 8-bit RGB: a property of the weights it started from."""

from typing import Annotated, Self

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

_Positive = Annotated[float, Field(gt=0)]


class InputNormalisation(BaseModel):
    """A net sees (x - mean) / std, where x is 8-bit RGB, 0 to 255.

    Attributes:
        mean: of red, green and blue, in units of 8-bit RGB.
        std: of red, green and blue, in units of 8-bit RGB.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    mean: tuple[float, float, float]
    std: tuple[_Positive, _Positive, _Positive]

    @classmethod
    def of_unit_range(cls, mean: tuple[float, float, float], std: tuple[float, float, float]) -> Self:
        """From the usual convention, where x is 0 to 1 (timm's `pretrained_cfg`, torchvision)."""
        return cls(
            mean=(mean[0] * 255, mean[1] * 255, mean[2] * 255),
            std=(std[0] * 255, std[1] * 255, std[2] * 255),
        )

    def apply(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) uint8 or float, 0 to 255 → (N, 3, H, W) float on the same device, what the net wants."""
        dtype = images.dtype if images.is_floating_point() else torch.float32
        mean = torch.tensor(self.mean, dtype=dtype, device=images.device).reshape(1, 3, 1, 1)
        std = torch.tensor(self.std, dtype=dtype, device=images.device).reshape(1, 3, 1, 1)
        return (images - mean) / std
