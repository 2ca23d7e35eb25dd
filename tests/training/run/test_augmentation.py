"""Views against torchvision's functions one photo at a time, their draws against bounds, and what recipes leave off."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from training.recipe_settings import AugmentationSettings
from training.run.augmentation import BatchAugmentation, blur, crop_and_resize, crop_boxes, flip, jitter_colours
from training.torchvision_ops import define_missing_operators

define_missing_operators()
from torchvision.transforms import RandomResizedCrop  # noqa: E402
from torchvision.transforms import functional as torchvision_functional  # noqa: E402

ALL_ON = AugmentationSettings(crop_scale=0.5, flip=True, colour_jitter=0.4, blur_sigma=1.5)
SETTINGS = [
    AugmentationSettings(crop_scale=0.5),
    AugmentationSettings(colour_jitter=0.4),
    AugmentationSettings(blur_sigma=1.5),
    ALL_ON,
]


def seeded(seed: int = 0, device: str = "cpu") -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


def noise(count: int = 4, size: tuple[int, int] = (48, 64), seed: int = 0) -> Tensor:
    """Photos as the cache gives them: uint8, channels last in memory."""
    return torch.randint(0, 256, (count, *size, 3), dtype=torch.uint8, generator=seeded(seed)).permute(0, 3, 1, 2)


@pytest.mark.parametrize("settings", [AugmentationSettings(), AugmentationSettings(flip=True)])
def test_without_settings_a_view_is_a_copy_of_its_photo(settings: AugmentationSettings) -> None:
    augmentation = BatchAugmentation(settings)
    assert not augmentation.changes_views
    for images in (noise(), noise().float()):
        view = augmentation.random_view(images, seeded())
        assert view.dtype == torch.float32
        assert torch.equal(view, images.float())
        assert view.data_ptr() != images.data_ptr()


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("prepare", [lambda x: x, lambda x: x.float(), lambda x: x.contiguous().float()])
def test_a_view_keeps_shape_and_range_and_leaves_its_photo_alone(
    settings: AugmentationSettings, prepare: Callable[[Tensor], Tensor]
) -> None:
    images = prepare(noise())
    before = images.clone()
    assert BatchAugmentation(settings).changes_views
    view = BatchAugmentation(settings).random_view(images, seeded())
    assert (view.shape, view.dtype) == (images.shape, torch.float32)
    assert 0 <= view.min() < view.max() <= 255
    assert torch.equal(images, before)
    assert torch.equal(view, BatchAugmentation(settings).random_view(noise().contiguous(), seeded()))


@pytest.mark.parametrize("settings", SETTINGS)
def test_the_generator_alone_decides_and_every_photo_has_its_own_draw(settings: AugmentationSettings) -> None:
    augmentation, same = BatchAugmentation(settings), noise(1).expand(6, -1, -1, -1)
    generator = seeded(3)
    first, second = augmentation.random_view(same, generator), augmentation.random_view(same, generator)
    torch.manual_seed(99)
    assert torch.equal(first, augmentation.random_view(same, seeded(3)))
    views = torch.cat([first, second]).flatten(1)
    # Two standard deviations close to 0 may both leave the photo as it is.
    assert len(torch.unique(views, dim=0)) >= (11 if settings.blur_sigma else 12)


@pytest.mark.parametrize("settings", SETTINGS)
def test_an_empty_batch_and_autocast(settings: AugmentationSettings) -> None:
    augmentation = BatchAugmentation(settings)
    assert augmentation.random_view(noise(0), seeded()).shape == (0, 3, 48, 64)
    plain = augmentation.random_view(noise(), seeded())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(augmentation.random_view(noise(), seeded()), plain)


def test_a_large_batch_is_worked_on_in_portions_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = BatchAugmentation(ALL_ON).random_view(noise(7), seeded())
    monkeypatch.setattr("training.run.augmentation._CPU_PIXELS", 2 * 48 * 64)
    assert torch.allclose(BatchAugmentation(ALL_ON).random_view(noise(7), seeded()), whole, atol=1e-4)


@pytest.mark.parametrize("size", [(48, 64), (256, 256), (480, 640)])
def test_a_crop_of_everything_is_the_photo(size: tuple[int, int]) -> None:
    images = noise(2, size).float()
    height, width = size
    boxes = torch.tensor([[0.0, 0, width, height]] * 2)
    # Widths that are no power of two round coordinates: of a whole photo 480x640, by 6e-5 pixels at most.
    tolerance = 1e-3 if size == (256, 256) else 0.02
    assert torch.allclose(crop_and_resize(images, boxes), images, rtol=0, atol=tolerance)


@pytest.mark.parametrize("antialias", [True, False])
def test_a_crop_is_torchvisions(antialias: bool) -> None:
    images = noise(5, (96, 128)).float()
    boxes = [(0, 0, 100, 90), (28, 6, 100, 90), (13, 17, 37, 41), (127, 95, 1, 1), (5, 0, 123, 96)]
    ours = crop_and_resize(images, torch.tensor(boxes, dtype=torch.float32))
    for image, (left, top, width, height), view in zip(images, boxes, ours, strict=True):
        theirs = torchvision_functional.resized_crop(image, top, left, height, width, [96, 128], antialias=antialias)
        assert (view - theirs).abs().max() < 0.05


@pytest.mark.parametrize("size", [(480, 640), (256, 256), (100, 300)])
@pytest.mark.parametrize("smallest", [0.25, 0.75, 0.99])
def test_boxes_lie_within_the_photo_and_the_bounds(size: tuple[int, int], smallest: float) -> None:
    height, width = size
    boxes = crop_boxes(torch.rand(4, 4000, 10, generator=seeded()), size, smallest)
    left, top, box_width, box_height = boxes.unbind(1)
    assert torch.equal(boxes, boxes.round())
    assert left.min() >= 0
    assert top.min() >= 0
    assert (left + box_width).max() <= width
    assert (top + box_height).max() <= height
    aspect, share = box_width / box_height, box_width * box_height / (height * width)
    slack = 1 + 2 / min(size)  # whole pixels
    assert aspect.min() * slack >= 3 / 4
    assert aspect.max() / slack <= 4 / 3
    centred = (box_width == min(width, round(height * 4 / 3))) & (box_height == min(height, round(width * 4 / 3)))
    drawn = share[~centred]
    assert not len(drawn) or drawn.min() * slack**2 >= smallest


def test_boxes_are_distributed_as_torchvisions() -> None:
    """Deciles of 4000 boxes of either."""
    torch.manual_seed(1)
    image = noise(1, (480, 640))[0]
    theirs = torch.tensor(
        [RandomResizedCrop.get_params(image, [0.25, 1.0], [3 / 4, 4 / 3]) for _ in range(4000)], dtype=torch.float32
    )[:, [1, 0, 3, 2]]
    ours = crop_boxes(torch.rand(4, 4000, 10, generator=seeded()), (480, 640), 0.25)
    at = torch.linspace(0.05, 0.95, 10)
    for ours_of, theirs_of, extent in zip(ours.T, theirs.T, (640, 480, 640, 480), strict=True):
        difference = torch.quantile(ours_of, at) - torch.quantile(theirs_of, at)
        assert difference.abs().max() < 0.03 * extent


def test_a_box_that_never_fits_is_the_middle_as_torchvisions() -> None:
    """At 1:4 no area of 90 % has 3:4 to 4:3."""
    assert crop_boxes(torch.rand(4, 3, 10, generator=seeded()), (100, 400), 0.9).tolist() == [[133, 0, 133, 100]] * 3
    assert crop_boxes(torch.rand(4, 3, 10, generator=seeded()), (400, 100), 0.9).tolist() == [[0, 133, 100, 133]] * 3


def test_the_first_try_that_fits_is_taken() -> None:
    """On paper, 100x100, everything of the area: aspect 4:3 is too wide, 1:1 fits."""
    uniform = torch.tensor([[1.0, 1.0, 0.0], [0.999, 0.5, 0.5], [0.5, 0.0, 0.9], [0.5, 0.0, 0.9]])[:, None]
    assert crop_boxes(uniform, (100, 100), 0.25).tolist() == [[0, 0, 100, 100]]
    # Without the second the third: a quarter of the area is 50x50, and 0.9 of the 51 places is the 45th.
    assert crop_boxes(uniform[..., [0, 2]], (100, 100), 0.25).tolist() == [[45, 45, 50, 50]]


def test_the_largest_random_number_stays_inside() -> None:
    almost_one = torch.full((4, 1, 1), math.nextafter(1.0, 0.0), dtype=torch.float64).float().clamp_max(1 - 2**-24)
    almost_one[0] = 0
    almost_one[1] = 0.5
    left, top, width, height = crop_boxes(almost_one, (3000, 3001), 0.25)[0].tolist()
    assert (left + width, top + height) == (3001, 3000)


@pytest.mark.parametrize(
    ("which", "adjust"),
    [
        (0, torchvision_functional.adjust_brightness),
        (1, torchvision_functional.adjust_contrast),
        (2, torchvision_functional.adjust_saturation),
    ],
)
def test_jitter_is_torchvisions(which: int, adjust: Callable[[Tensor, float], Tensor]) -> None:
    images = noise(4).float()
    for factor in (0.0, 0.6, 1.0, 1.4, 2.0):
        factors = torch.ones(4, 3)
        factors[:, which] = factor
        # torchvision's grey weights are rounded: 0.2989, 0.587, 0.114.
        theirs = adjust(images / 255, factor) * 255
        assert torch.allclose(jitter_colours(images, factors), theirs, rtol=0, atol=0.06)


def test_jitter_of_each_photo_is_its_own_and_in_order() -> None:
    images = noise(3).float()
    factors = torch.tensor([[1.3, 0.7, 1.2], [0.8, 1.2, 0.5], [1.0, 1.0, 1.0]])
    views = jitter_colours(images, factors)
    for image, (brightness, contrast, saturation), view in zip(images / 255, factors.tolist(), views, strict=True):
        theirs = torchvision_functional.adjust_brightness(image, brightness)
        theirs = torchvision_functional.adjust_contrast(theirs, contrast)
        theirs = torchvision_functional.adjust_saturation(theirs, saturation)
        assert torch.allclose(view, theirs * 255, rtol=0, atol=0.1)


def test_jitter_draws_factors_within_its_bounds() -> None:
    """A grey photo of one value shows its brightness factor."""
    images = torch.full((2000, 3, 4, 4), 100, dtype=torch.uint8)
    views = BatchAugmentation(AugmentationSettings(colour_jitter=0.4)).random_view(images, seeded())
    factors = views[:, 0, 0, 0] / 100
    assert 0.6 <= factors.min() < 0.61
    assert 1.39 < factors.max() <= 1.4 + 1e-6
    assert abs(factors.mean() - 1) < 0.02


@pytest.mark.parametrize("size", [(48, 64), (9, 9)])
def test_blur_is_torchvisions(size: tuple[int, int]) -> None:
    images, sigmas = noise(4, size).float(), [0.3, 0.8, 1.0, 1.5]
    views = blur(images, torch.tensor(sigmas), 1.5)
    reach = min(5, min(size) - 1)
    for image, sigma, view in zip(images, sigmas, views, strict=True):
        theirs = torchvision_functional.gaussian_blur(image, [2 * reach + 1] * 2, [sigma] * 2)
        assert torch.allclose(view, theirs, rtol=0, atol=1e-3)


def test_blur_by_hand() -> None:
    """One white pixel, sigma 1: the kernel's outer product; a sigma of 0 changes nothing."""
    image = torch.zeros(2, 3, 15, 15)
    image[:, :, 7, 7] = 255
    views = blur(image, torch.tensor([1.0, 0.0]), 1.0)
    weights = [math.exp(-0.5 * x * x) for x in range(-3, 4)]
    kernel = torch.tensor([weight / sum(weights) for weight in weights])
    assert torch.allclose(views[0, 0, 4:11, 4:11], 255 * torch.outer(kernel, kernel), atol=1e-4)
    assert torch.equal(views[1], image[1])


def test_flip_is_one_coin_for_a_batch() -> None:
    images = noise()
    assert torch.equal(flip(images), torch.stack([torchvision_functional.hflip(image) for image in images]))
    assert torch.equal(flip(images[None])[0], flip(images))
    generator = seeded()
    coins = [BatchAugmentation(ALL_ON).flips(generator) for _ in range(400)]
    assert set(map(type, coins)) == {bool}
    assert 140 < sum(coins) < 260
    off = BatchAugmentation(AugmentationSettings(crop_scale=0.5))
    assert not any(off.flips(generator) for _ in range(50))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("settings", SETTINGS)
def test_on_a_gpu_views_are_deterministic_and_wait_for_nothing(settings: AugmentationSettings) -> None:
    augmentation, images = BatchAugmentation(settings), noise().cuda()
    augmentation.random_view(images, seeded(device="cuda"))  # loads kernels
    generator, again = seeded(5, "cuda"), seeded(5, "cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        first, second = augmentation.random_view(images, generator), augmentation.random_view(images, generator)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert first.device.type == "cuda"
    assert torch.equal(first, augmentation.random_view(images, again))
    assert not torch.equal(first, second)
    assert 0 <= first.min() < first.max() <= 255
    assert isinstance(augmentation.flips(generator), bool)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_the_same_draws_give_the_same_view() -> None:
    images, generator = noise(5, (96, 128)).float(), seeded(7)
    boxes = crop_boxes(torch.rand(4, 5, 10, generator=generator), (96, 128), 0.5)
    factors = 0.6 + 0.8 * torch.rand(5, 3, generator=generator)
    sigmas = 1.5 * torch.rand(5, generator=generator)
    ours = blur(jitter_colours(crop_and_resize(images, boxes), factors), sigmas, 1.5)
    theirs = crop_and_resize(images.cuda(), boxes.cuda())
    theirs = blur(jitter_colours(theirs, factors.cuda()), sigmas.cuda(), 1.5)
    assert torch.allclose(theirs.cpu(), ours, rtol=0, atol=0.05)
