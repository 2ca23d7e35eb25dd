"""Random views of photos, a batch at once, on the device where the batch lies.

The crop is torchvision's RandomResizedCrop back to the photo's own size, as VG-SSL trains with; colour jitter and blur
are those of SimCLR (Chen et al. 2020), applied after it, brightness before contrast before saturation. Every photo has
its own draw, all draws come from one generator of the device, and nothing waits for the device but the coin of `flips`.

Nothing here is a convolution or a matrix product: those would lose digits to TF32 on a GPU and to bf16 under autocast.
"""

import math
from dataclasses import dataclass
from typing import Final, Self

import torch
from torch import Tensor
from torch.nn import functional

from training.recipe_settings import AugmentationSettings

# RandomResizedCrop's.
_LOG_ASPECT: Final = math.log(4 / 3)
_TRIES: Final = 10

# ITU-R 601 luma.
_GREY: Final = (0.299, 0.587, 0.114)

# A CPU works on so many pixels at once: their arrays stay in its cache and below the size that malloc maps anew.
_CPU_PIXELS: Final = 1 << 19

# Of a Gaussian's standard deviations, how many its kernel reaches to each side.
_REACH: Final = 3
_SMALLEST_SIGMA: Final = 1e-3  # next to a pixel's 1, nothing: the kernel is 0, 1, 0


class BatchAugmentation:
    """Draws views of photos as a recipe's `[augmentation]` says.

    Args:
        settings: how much a view differs from its photo.
    """

    def __init__(self, settings: AugmentationSettings) -> None:
        self.settings = settings

    @property
    def changes_views(self) -> bool:
        """Whether `random_view` does anything."""
        settings = self.settings
        return settings.crop_scale < 1 or settings.colour_jitter > 0 or settings.blur_sigma > 0

    def random_view(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """A random view of each photo.

        Args:
            images: (N, 3, H, W) uint8 or float RGB, 0 to 255, of any memory format; left as they are.
            generator: of the images' device; alone decides what is random.

        Returns:
            (N, 3, H, W) float32, 0 to 255, a copy.
        """
        if not self.changes_views or not len(images):
            return images.to(torch.float32, copy=True)
        draws = _Draws.draw(self.settings, images, generator)
        views = torch.empty(images.shape, dtype=torch.float32, device=images.device)
        for some in _portions(images):
            # Planes of one channel each: what grid_sample and the weighting of channels are fastest on.
            portion = images[some].to(torch.float32, memory_format=torch.contiguous_format)
            views[some] = draws[some].apply(portion)
        return views

    def flips(self, generator: torch.Generator) -> bool:
        """Whether to mirror a whole batch: one coin, so that pairs stay alike; never without `flip`."""
        return self.settings.flip and bool(torch.rand((), generator=generator, device=generator.device) < 0.5)


def flip(images: Tensor) -> Tensor:
    """Mirror left and right: (..., W) of any dtype → the same shape."""
    return images.flip(-1)


@dataclass(frozen=True, slots=True)
class _Draws:
    """What was drawn for each of N photos; None for what the recipe leaves off.

    boxes: (N, 4) float32 left, top, width, height in whole pixels.
    factors: (N, 3) float32 of brightness, contrast and saturation.
    sigmas: (N,) float32 pixels. largest_sigma: of any draw, which settles the kernel's size without asking the device.
    """

    boxes: Tensor | None
    factors: Tensor | None
    sigmas: Tensor | None
    largest_sigma: float

    @classmethod
    def draw(cls, settings: AugmentationSettings, images: Tensor, generator: torch.Generator) -> Self:
        count, _, height, width = images.shape

        def uniform(*shape: int) -> Tensor:
            return torch.rand(shape, generator=generator, device=images.device)

        jitter, sigma = settings.colour_jitter, settings.blur_sigma
        return cls(
            crop_boxes(uniform(4, count, _TRIES), (height, width), settings.crop_scale)
            if settings.crop_scale < 1
            else None,
            1 + jitter * (2 * uniform(count, 3) - 1) if jitter > 0 else None,
            sigma * uniform(count) if sigma > 0 else None,
            sigma,
        )

    def __getitem__(self, some: slice) -> "_Draws":
        boxes, factors, sigmas = (
            None if drawn is None else drawn[some] for drawn in (self.boxes, self.factors, self.sigmas)
        )
        return _Draws(boxes, factors, sigmas, self.largest_sigma)

    def apply(self, images: Tensor) -> Tensor:
        if self.boxes is not None:
            images = crop_and_resize(images, self.boxes)
        if self.factors is not None:
            images = jitter_colours(images, self.factors)
        if self.sigmas is not None:
            images = blur(images, self.sigmas, self.largest_sigma)
        return images


def _portions(images: Tensor) -> list[slice]:
    """Slices of a batch to work on one after another: on a GPU all at once."""
    count, _, height, width = images.shape
    step = max(1, _CPU_PIXELS // (height * width)) if images.device.type == "cpu" else count
    return [slice(begin, begin + step) for begin in range(0, count, step)]


def crop_boxes(uniform: Tensor, size: tuple[int, int], smallest_share: float) -> Tensor:
    """Boxes as torchvision's RandomResizedCrop draws them: of ten tries the first that fits, else a centred one.

    Args:
        uniform: (4, N, tries) random numbers in [0, 1): of area, aspect, left and top.
        size: (height, width) of the photos, pixels.
        smallest_share: of the photo's area, in (0, 1].

    Returns:
        (N, 4) float32: left, top, width, height in whole pixels, within the photo.
    """
    height, width = size
    area = height * width * (smallest_share + (1 - smallest_share) * uniform[0])
    aspect = torch.exp(_LOG_ASPECT * (2 * uniform[1] - 1))
    widths, heights = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
    fits = (widths >= 1) & (widths <= width) & (heights >= 1) & (heights <= height)
    # A product close to a whole number may round up to it.
    lefts = torch.minimum((uniform[2] * (width - widths + 1)).floor(), width - widths)
    tops = torch.minimum((uniform[3] * (height - heights + 1)).floor(), height - heights)
    tries = torch.stack([lefts, tops, widths, heights], dim=-1)
    first = fits.to(torch.uint8).argmax(dim=1)
    drawn = tries.gather(1, first[:, None, None].expand(-1, 1, 4)).squeeze(1)
    # Filled on the device: a tensor made of a list would be copied to it, which waits.
    centred = torch.stack([torch.full_like(drawn[:, 0], side) for side in _centred_box(size)], dim=-1)
    return torch.where(fits.any(dim=1)[:, None], drawn, centred)


def _centred_box(size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The largest box in the middle of 3:4 to 4:3: left, top, width, height."""
    height, width = size
    box_width, box_height = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    return (width - box_width) // 2, (height - box_height) // 2, box_width, box_height


def crop_and_resize(images: Tensor, boxes: Tensor) -> Tensor:
    """Cut a box out of each image and enlarge it bilinearly to the image's size.

    Pixels outside the box have no influence, as in torchvision's `resized_crop`. A box of the whole image gives the
    image back, but for rounding of coordinates: up to 0.02 between a black and a white pixel where 640 pixels are wide.

    Args:
        images: (N, 3, H, W) float32.
        boxes: (N, 4): left, top, width, height in pixels.

    Returns:
        (N, 3, H, W) float32.
    """
    height, width = images.shape[-2:]
    x = _sampled_at(boxes[:, 0], boxes[:, 2], width)
    y = _sampled_at(boxes[:, 1], boxes[:, 3], height)
    grid = torch.empty((len(images), height, width, 2), dtype=images.dtype, device=images.device)
    grid[..., 0] = x[:, None, :]
    grid[..., 1] = y[:, :, None]
    return functional.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _sampled_at(begin: Tensor, extent: Tensor, size: int) -> Tensor:
    """Where along one side (N) boxes are sampled: (N, size), in grid_sample's -1 to 1."""
    begin, extent = begin[:, None], extent[:, None]
    centres = torch.arange(size, dtype=begin.dtype, device=begin.device) + 0.5
    pixels = (centres * (extent / size) - 0.5).clamp_min(0)
    return (2 * (begin + torch.minimum(pixels, extent - 1)) + 1) / size - 1


def jitter_colours(images: Tensor, factors: Tensor) -> Tensor:
    """Change brightness, then contrast, then saturation, as torchvision's adjust_* on float images of 0 to 255.

    Args:
        images: (N, 3, H, W) float32, 0 to 255.
        factors: (N, 3): of brightness, contrast and saturation; 1 changes nothing.

    Returns:
        (N, 3, H, W) float32, 0 to 255.
    """
    brightness, contrast, saturation = (factors[:, i, None, None, None] for i in range(3))
    views = (images * brightness).clamp_(0, 255)
    mean = _grey(views).mean(dim=(1, 2, 3), keepdim=True)
    views.mul_(contrast).add_((1 - contrast) * mean).clamp_(0, 255)
    grey = _grey(views)
    return views.mul_(saturation).add_(grey.mul_(1 - saturation)).clamp_(0, 255)


def _grey(images: Tensor) -> Tensor:
    """(N, 3, H, W) → (N, 1, H, W)."""
    grey = images[:, 0:1] * _GREY[0]
    return grey.add_(images[:, 1:2], alpha=_GREY[1]).add_(images[:, 2:3], alpha=_GREY[2])


def blur(images: Tensor, sigmas: Tensor, largest_sigma: float) -> Tensor:
    """Blur each image with its own Gaussian, reflected at the edges.

    Args:
        images: (N, 3, H, W) float32.
        sigmas: (N,) standard deviations in pixels; 0 changes nothing.
        largest_sigma: at least the largest of them; kernels reach three of it to each side.

    Returns:
        (N, 3, H, W) float32.
    """
    reach = min(max(1, math.ceil(_REACH * largest_sigma)), min(images.shape[-2:]) - 1)
    distances = torch.arange(reach + 1, dtype=sigmas.dtype, device=sigmas.device)
    kernel = torch.exp(-0.5 * (distances / sigmas.clamp_min(_SMALLEST_SIGMA)[:, None]) ** 2)
    kernel = kernel / (kernel[:, :1] + 2 * kernel[:, 1:].sum(dim=1, keepdim=True))
    return _weighted_sum(_weighted_sum(images, kernel, dim=3), kernel, dim=2)


def _weighted_sum(images: Tensor, kernel: Tensor, dim: int) -> Tensor:
    """Convolve one side of each image with its own symmetric kernel, given from the middle outwards: (N, reach + 1)."""
    reach, size = kernel.shape[1] - 1, images.shape[dim]
    padding = (reach, reach, 0, 0) if dim == 3 else (0, 0, reach, reach)
    padded = functional.pad(images, padding, mode="reflect")
    weights = kernel[:, :, None, None, None]
    result = images * weights[:, 0]
    for away in range(1, reach + 1):
        both = padded.narrow(dim, reach - away, size) + padded.narrow(dim, reach + away, size)
        result.addcmul_(both, weights[:, away])
    return result
