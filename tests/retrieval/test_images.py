import io
import math
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from pydantic import ValidationError

from retrieval import images
from retrieval.errors import ImageError
from retrieval.images import (
    DEFAULT_LIMITS,
    ImageLimits,
    Preprocessing,
    RgbImage,
    decode_image,
    decode_upright,
    read_image,
    read_image_bytes,
    sniff_format,
)
from tests.hypothesis_profiles import examples
from tests.retrieval.encoded import (
    FORMATS,
    bomb_heic,
    bomb_jpeg,
    bomb_png,
    bomb_webp,
    encode,
    png,
    smooth,
)
from tests.retrieval.refusal import refused

REPOSITORY = Path(__file__).resolve().parents[2]
INCOMPLETE = "Check that the file is complete; it may have been cut off while copying or sending."
SMALLER = "Send a smaller photo: the model looks at a small version of it anyway."
SMALL = Preprocessing(height=48, width=64)


def difference(one: RgbImage, other: RgbImage) -> float:
    assert one.shape == other.shape
    return float(np.abs(one.astype(np.int64) - other.astype(np.int64)).mean())


def resized(image: Image.Image, preprocessing: Preprocessing = SMALL) -> RgbImage:
    return np.asarray(image.resize((preprocessing.width, preprocessing.height), Image.Resampling.BICUBIC))


DAMAGE_CODES = {"empty_body", "unsupported_media_type", "image_undecodable"}


def decoded_or_code(data: bytes) -> RgbImage | str:
    try:
        return decode_image(data, SMALL, ImageLimits(max_pixels=4_000_000))
    except ImageError as error:
        return error.code


# Formats and orientations


@pytest.mark.parametrize("image_format", FORMATS)
def test_every_format_is_decoded_to_the_same_picture(image_format: str) -> None:
    picture = smooth(320, 240)
    decoded = decode_image(encode(picture, image_format), SMALL)
    assert decoded.shape == (48, 64, 3)
    assert decoded.dtype == np.uint8
    assert decoded.flags.c_contiguous
    assert difference(decoded, resized(picture)) < 3.0


@pytest.mark.parametrize("scaled", [True, False], ids=["scaled decode", "full decode"])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("image_format", FORMATS)
def test_every_exif_orientation_comes_out_upright(image_format: str, orientation: int, scaled: bool) -> None:
    upright = smooth(384, 256)
    preprocessing = Preprocessing(height=48, width=64, jpeg_scaled_decode=scaled)
    decoded = decode_image(encode(upright, image_format, orientation), preprocessing)
    assert difference(decoded, resized(upright)) < 3.0


def test_the_eight_orientations_are_told_apart_by_that_test() -> None:
    upright = smooth(384, 256)
    sideways = [decode_image(encode(upright, "PNG", o), SMALL) for o in range(1, 9)]
    wrong = [decode_image(encode(upright.transpose(turn), "PNG"), SMALL) for turn in Image.Transpose]
    assert min(difference(right, other) for right in sideways for other in wrong) > 20.0


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("exif", [b"Exif\0\0no TIFF at all", b"Exif\0\0", b"Exif\0\0II*\0\x08\0\0\0" + b"\xff" * 40])
def test_a_photo_with_a_damaged_exif_block_is_decoded_as_it_lies(image_format: str, exif: bytes) -> None:
    picture = smooth(320, 240)
    assert difference(decode_image(encode(picture, image_format, exif=exif), SMALL), resized(picture)) < 3.0


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_a_turned_photo_with_an_odd_exif_tag_is_turned_all_the_same() -> None:
    """Turning by Pillow's `exif_transpose` writes the block anew, and fails on this one."""
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010F] = "maker"
    text, number = b"\x01\x0f\x00\x02", b"\x01\x0f\x00\x0b"
    assert text in exif.tobytes()
    block = exif.tobytes().replace(text, number) + bytes(24)
    upright = smooth(240, 320)
    data = encode(upright.transpose(Image.Transpose.ROTATE_90), "JPEG", exif=block)
    with pytest.raises(AttributeError):
        ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert difference(decode_image(data, SMALL), resized(upright)) < 3.0


def test_of_a_jpeg_with_several_pictures_the_first_is_the_photo() -> None:
    """Cameras store previews, depth maps or the other eye behind the photo (MPO)."""
    photo, preview = smooth(640, 480), smooth(160, 120, seed=1)
    several = encode(photo, "MPO", save_all=True, append_images=[preview])
    assert several.startswith(b"\xff\xd8\xff")
    assert np.array_equal(decode_image(several, SMALL), decode_image(encode(photo, "JPEG"), SMALL))


# Pixel types


def flat(value: int | tuple[int, ...], mode: str) -> Image.Image:
    return Image.new(mode, (64, 48), value)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG"])
@pytest.mark.parametrize("level", [0, 60, 255])
def test_grey_becomes_equal_red_green_and_blue(image_format: str, level: int) -> None:
    decoded = decode_image(encode(flat(level, "L"), image_format), SMALL)
    np.testing.assert_allclose(decoded, level, atol=1)


def test_black_and_white_is_decoded() -> None:
    assert (decode_image(encode(flat(1, "1"), "PNG"), SMALL) == 255).all()


def test_cmyk_is_decoded_to_the_colours_it_prints() -> None:
    cyan, black = (255, 0, 0, 0), (0, 0, 0, 255)
    np.testing.assert_allclose(decode_image(encode(flat(cyan, "CMYK"), "JPEG"), SMALL)[24, 32], [0, 255, 255], atol=3)
    np.testing.assert_allclose(decode_image(encode(flat(black, "CMYK"), "JPEG"), SMALL)[24, 32], [0, 0, 0], atol=3)


@pytest.mark.parametrize(("level", "grey"), [(0, 0), (257, 1), (32768, 128), (65535, 255)])
def test_sixteen_bit_grey_keeps_its_brightness(level: int, grey: int) -> None:
    picture = Image.fromarray(np.full((48, 64), level, np.uint16))
    assert picture.mode == "I;16"
    assert (decode_image(encode(picture, "PNG"), SMALL) == grey).all()


@pytest.mark.parametrize("orientation", [3, 6])
def test_sixteen_bit_grey_is_turned_upright(orientation: int) -> None:
    rows = np.linspace(0, 65535, 48).astype(np.uint16)
    upright = Image.fromarray(np.repeat(rows[:, None], 64, axis=1))
    decoded = decode_image(encode(upright, "PNG", orientation), SMALL)
    np.testing.assert_allclose(decoded[:, :, 0], np.repeat((rows >> 8)[:, None], 64, axis=1), atol=1)


def test_sixteen_bit_colour_and_transparent_grey_keep_their_brightness() -> None:
    colour = b"\0" + np.array([[32768, 65535, 0]] * 64, ">u2").tobytes()
    assert decode_image(png(64, 48, 16, 2, colour * 48), SMALL)[0, 0].tolist() == [128, 255, 0]
    half_transparent = b"\0" + np.array([[0, 32768]] * 64, ">u2").tobytes()
    np.testing.assert_allclose(decode_image(png(64, 48, 16, 4, half_transparent * 48), SMALL), 127, atol=1)


def test_a_palette_is_replaced_by_its_colours() -> None:
    picture = smooth(64, 48).quantize(32)
    assert picture.mode == "P"
    assert np.array_equal(decode_image(encode(picture, "PNG"), SMALL), np.asarray(picture.convert("RGB")))


def test_the_transparent_colour_of_a_palette_shows_white() -> None:
    picture = Image.new("P", (64, 48), 0)
    picture.putpalette([10, 20, 30, 200, 0, 0])
    picture.paste(1, (32, 0, 64, 48))
    decoded = decode_image(encode(picture, "PNG", transparency=0), SMALL)
    assert decoded[10, 10].tolist() == [255, 255, 255]
    assert decoded[10, 50].tolist() == [200, 0, 0]


@pytest.mark.parametrize(("mode", "key"), [("RGB", (10, 20, 30)), ("L", 10)])
def test_a_colour_key_shows_white(mode: str, key: int | tuple[int, ...]) -> None:
    assert (decode_image(encode(flat(key, mode), "PNG", transparency=key), SMALL) == 255).all()


@pytest.mark.parametrize("image_format", ["PNG", "WEBP"])
@pytest.mark.parametrize(("mode", "black"), [("RGBA", (0, 0, 0)), ("LA", (0,))])
@pytest.mark.parametrize(("alpha", "shown"), [(0, 255), (128, 127), (255, 0)])
def test_transparency_lies_over_white(
    image_format: str, mode: str, black: tuple[int, ...], alpha: int, shown: int
) -> None:
    decoded = decode_image(encode(flat((*black, alpha), mode), image_format, exact=True), SMALL)
    np.testing.assert_allclose(decoded, shown, atol=1)


# Fitting the input size


def test_stretch_uses_the_whole_picture() -> None:
    picture = flat((255, 0, 0), "RGB").resize((400, 100))
    picture.paste((0, 0, 255), (200, 0, 400, 100))
    decoded = decode_image(encode(picture, "PNG"), Preprocessing(height=64, width=64))
    assert (decoded[:, :30] == [255, 0, 0]).all()
    assert (decoded[:, 34:] == [0, 0, 255]).all()


@pytest.mark.parametrize("size", [(400, 200), (200, 400)])
def test_crop_cuts_the_longer_side_evenly(size: tuple[int, int]) -> None:
    picture = Image.new("RGB", size, (255, 0, 0))
    width, height = size
    picture.paste((0, 0, 255), ((width - 200) // 2, (height - 200) // 2, (width + 200) // 2, (height + 200) // 2))
    decoded = decode_image(encode(picture, "PNG"), Preprocessing(height=64, width=64, fit="crop"))
    np.testing.assert_allclose(decoded[2:-2, 2:-2], np.broadcast_to([0, 0, 255], (60, 60, 3)), atol=2)


def test_pad_fills_the_rest_with_black() -> None:
    decoded = decode_image(
        encode(Image.new("RGB", (200, 100), "white"), "PNG"), Preprocessing(height=64, width=64, fit="pad")
    )
    assert (decoded[:16] == 0).all()
    assert (decoded[16:48] == 255).all()
    assert (decoded[48:] == 0).all()


@pytest.mark.parametrize("fit", ["stretch", "crop", "pad"])
@pytest.mark.parametrize("image_format", FORMATS)
def test_pictures_smaller_than_the_input_are_enlarged(image_format: str, fit: str) -> None:
    preprocessing = Preprocessing(height=96, width=128, fit=fit)
    picture = smooth(64, 48)
    assert difference(decode_image(encode(picture, image_format), preprocessing), resized(picture, preprocessing)) < 6.0


def test_the_filter_is_antialiased() -> None:
    """A fine checkerboard becomes flat grey; picking single pixels would make it black or white."""
    board = Image.fromarray((np.indices((480, 640)).sum(axis=0) % 2 * 255).astype(np.uint8))
    for name in ("bilinear", "bicubic"):
        decoded = decode_image(encode(board, "PNG"), Preprocessing(height=48, width=64, filter=name))
        np.testing.assert_allclose(decoded, 127.5, atol=2)


@pytest.mark.parametrize("fit", ["stretch", "crop", "pad"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_scaled_decode_never_falls_below_the_input_size(
    fit: str, orientation: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[tuple[int, int]] = []
    fit_whole = images._fit
    monkeypatch.setattr(images, "_fit", lambda image, p: decoded.append(image.size) or fit_whole(image, p))
    preprocessing = Preprocessing(height=48, width=64, fit=fit)
    sides = [(factor * 64 + extra, factor * 48 + other) for factor in (1, 2, 4, 8) for extra in (-1, 0, 9)
             for other in (-1, 0, 7)]  # fmt: skip
    for width, height in [*sides, (2000, 100), (100, 2000), (513, 384), (511, 385)]:
        decode_image(encode(smooth(width, height), "JPEG", orientation), preprocessing)
        got_width, got_height = decoded.pop()
        needs = (64 / width, 48 / height)
        ratio = min(1.0, {"stretch": max(needs), "crop": max(needs), "pad": min(needs)}[fit])
        # Half a pixel: libjpeg rounds the scaled size up, we round the wanted one.
        assert got_width >= width * ratio - 0.5 - 1e-9, (width, height, got_width)
        assert got_height >= height * ratio - 0.5 - 1e-9, (width, height, got_height)


def test_scaled_decode_is_used_where_it_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[tuple[int, int]] = []
    fit_whole = images._fit
    monkeypatch.setattr(images, "_fit", lambda image, p: decoded.append(image.size) or fit_whole(image, p))
    data = encode(smooth(512, 384), "JPEG")
    decode_image(data, SMALL)
    decode_image(data, Preprocessing(height=48, width=64, jpeg_scaled_decode=False))
    assert decoded == [(64, 48), (512, 384)]


def test_preprocessing_refuses_what_it_does_not_know() -> None:
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        Preprocessing(height=48, width=64, sharpen=True)
    with pytest.raises(ValidationError, match="greater than or equal to 16"):
        Preprocessing(height=4, width=64)


@pytest.mark.parametrize("image_format", FORMATS)
def test_the_same_bytes_give_the_same_array_from_many_threads(image_format: str) -> None:
    data = encode(smooth(400, 300), image_format, 6)
    first = decode_image(data, SMALL)
    with ThreadPoolExecutor(8) as threads:
        others = list(threads.map(lambda _: decode_image(data, SMALL), range(48)))
    assert all(np.array_equal(first, other) for other in others)


# For people


@pytest.mark.parametrize(
    ("size", "orientation", "shape"),
    [
        ((300, 200), 1, (67, 100, 3)),
        ((200, 300), 6, (100, 67, 3)),
        ((90, 60), 1, (60, 90, 3)),
        ((2000, 2), 1, (1, 100, 3)),
    ],
)
@pytest.mark.parametrize("image_format", FORMATS)
def test_decode_upright_keeps_the_aspect_ratio(
    image_format: str, size: tuple[int, int], orientation: int, shape: tuple[int, int, int]
) -> None:
    picture = smooth(*size)
    decoded = decode_upright(encode(picture, image_format, orientation), 100)
    assert decoded.shape == shape
    assert difference(decoded, np.asarray(picture.resize(shape[1::-1], Image.Resampling.BICUBIC))) < 6.0


# Refusals


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"this is a text, not a photo", "of an unknown format"),
        (b"\xff\xd8", "of an unknown format"),
        (b"GIF89a" + bytes(20), "a GIF"),
        (b"II*\x00" + bytes(20), "a TIFF"),
        (b"MM\x00*" + bytes(20), "a TIFF"),
        (b"BM" + bytes(20), "a BMP"),
        (b"%PDF-1.7" + bytes(20), "a PDF"),
        (b"\0\0\0\x1cftypavif" + bytes(20), "of an unknown format"),
    ],
)
def test_other_formats_are_refused_by_name(data: bytes, name: str) -> None:
    text = f"the image is {name}, which is not accepted. Send JPEG, PNG, WebP or HEIC."
    with refused(ImageError, text, "unsupported_media_type"):
        decode_image(data, SMALL)


def test_nothing_at_all_is_refused() -> None:
    with refused(ImageError, "the image is empty (0 bytes). Send the encoded photo.", "empty_body"):
        decode_image(b"", SMALL)


@pytest.mark.parametrize(("image_format", "sniffed"), [*zip(FORMATS, ("JPEG", "PNG", "WEBP", "HEIF"), strict=True)])
def test_the_format_is_known_by_its_first_bytes(image_format: str, sniffed: str) -> None:
    assert sniff_format(encode(smooth(64, 48), image_format)) == sniffed


@pytest.mark.parametrize(
    ("image_format", "kept", "what"),
    [
        ("JPEG", None, "the image cannot be decoded (it ends too early)"),
        ("PNG", None, "the image cannot be decoded (it ends too early)"),
        ("WEBP", None, "the image cannot be decoded (could not create decoder object)"),
        ("JPEG", 20, "the image starts like a JPEG but its header is damaged"),
        ("PNG", 12, "the image starts like a PNG but its header is damaged"),
        ("HEIC", 200, "the image starts like a HEIF but its header is damaged"),
    ],
)
def test_a_truncated_photo_is_refused(image_format: str, kept: int | None, what: str) -> None:
    data = encode(smooth(320, 240), image_format)
    cut = data[: kept or len(data) // 2]
    with refused(ImageError, f"{what}. {INCOMPLETE}", "image_undecodable"):
        decode_image(cut, SMALL)
    with refused(ImageError, f"photos/1.jpg: {what}. {INCOMPLETE}", "image_undecodable"):
        decode_image(cut, SMALL, where="photos/1.jpg")


def test_a_truncated_heic_is_refused_with_the_decoders_reason() -> None:
    data = encode(smooth(320, 240), "HEIC")
    with pytest.raises(ImageError) as caught:
        decode_image(data[: len(data) * 3 // 4], SMALL, where="a.heic")
    assert str(caught.value).startswith("a.heic: the image cannot be decoded (Invalid input: Unexpected end of file")
    assert str(caught.value).endswith(f"). {INCOMPLETE}")
    assert caught.value.code == "image_undecodable"


@pytest.mark.parametrize("options", [{}, {"progressive": True}], ids=["", "progressive"])
@pytest.mark.parametrize("image_format", FORMATS)
def test_a_photo_cut_off_anywhere_is_refused_or_whole(image_format: str, options: dict[str, bool]) -> None:
    """Never a picture with a black or grey rest. A PNG has a tail behind its last pixel; it may be missing."""
    data = encode(smooth(96, 72), image_format, **(options if image_format == "JPEG" else {}))
    whole = decode_image(data, SMALL)
    cuts = [*range(0, len(data), max(1, len(data) // 150)), *range(len(data) - 40, len(data))]
    outcomes = [decoded_or_code(data[:cut]) for cut in cuts]
    survivors = [outcome for outcome in outcomes if not isinstance(outcome, str)]
    assert all(np.array_equal(survivor, whole) for survivor in survivors)
    assert len(survivors) <= (24 if image_format == "PNG" else 0)
    assert {o for o in outcomes if isinstance(o, str)} <= DAMAGE_CODES


@pytest.mark.parametrize("image_format", ["PNG", "WEBP"])
def test_an_animation_is_refused(image_format: str) -> None:
    frames = [smooth(64, 48, seed) for seed in range(3)]
    data = encode(frames[0], image_format, save_all=True, append_images=frames[1:])
    with refused(ImageError, f"the {image_format} is animated. Send a still photo.", "unsupported_media_type"):
        decode_image(data, SMALL)


def test_too_many_bytes_are_refused_before_decoding() -> None:
    data = encode(smooth(64, 48), "PNG")
    limits = ImageLimits(max_bytes=len(data) - 1)
    text = f"the image has more than {len(data) - 1} bytes. {SMALLER}"
    with refused(ImageError, text, "body_too_large"):
        decode_image(data, SMALL, limits)
    with refused(ImageError, f"x.png: {text}", "body_too_large"):
        decode_image(data, SMALL, limits, where="x.png")
    assert decode_image(data, SMALL, ImageLimits(max_bytes=len(data))).shape == (48, 64, 3)


@pytest.mark.parametrize(("mode", "bytes_a_pixel"), [("RGBA", 12), ("LA", 12), ("I;16", 12), ("RGB", 8)])
def test_a_large_photo_takes_few_bytes_a_pixel(mode: str, bytes_a_pixel: int) -> None:
    """A flat PNG of a few kilobytes may have 80 million pixels, and several are decoded at once."""
    script = f"""
import io, re
from pathlib import Path
from PIL import Image
from retrieval.images import Preprocessing, decode_image
photo = io.BytesIO()
Image.new({mode!r}, (4000, 4000)).save(photo, "PNG", compress_level=1)
Path("/proc/self/clear_refs").write_text("5")
def peak(): return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
before = peak()
decode_image(photo.getvalue(), Preprocessing(height=48, width=64))
print((peak() - before) / 16e6)
"""
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert float(done.stdout) < bytes_a_pixel


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "PA", "I;16", "I"])
def test_conversion_in_strips_changes_no_pixel(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = smooth(64, 48)
    picture.putalpha(smooth(64, 48, 1).convert("L"))
    image = picture.convert("L").convert("I").point(lambda level: level * 257) if mode.startswith("I") else picture
    image = image.convert(mode) if mode != "P" else picture.convert("RGB").quantize(32)
    if mode == "P":
        image.info["transparency"] = bytes(range(32))
    whole = np.asarray(images._to_rgb(image))
    monkeypatch.setattr(images, "_STRIP_PIXELS", 64 * 5)
    assert np.array_equal(np.asarray(images._to_rgb(image)), whole)
    assert len(np.unique(whole)) > 8


@pytest.mark.parametrize("image_format", FORMATS)
def test_pixels_are_counted_by_the_header(image_format: str) -> None:
    data = encode(smooth(64, 48), image_format)
    assert decode_image(data, SMALL, ImageLimits(max_pixels=64 * 48)).shape == (48, 64, 3)
    with refused(ImageError, f"the image has more than {64 * 48 - 1} pixels. {SMALLER}", "too_many_pixels"):
        decode_image(data, SMALL, ImageLimits(max_pixels=64 * 48 - 1))


BOMBS = {
    "png": bomb_png(20_000),
    "png that Pillow only warns of": bomb_png(10_000),
    "jpeg": bomb_jpeg(20_000),
    "webp": bomb_webp(16_383),
    "heic": bomb_heic(20_000),
}


@pytest.mark.parametrize("name", BOMBS)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_header_bomb_is_refused(name: str) -> None:
    assert len(BOMBS[name]) < 3000
    with refused(ImageError, f"the image has more than 80000000 pixels. {SMALLER}", "too_many_pixels"):
        decode_image(BOMBS[name], SMALL)


def test_no_pixel_of_a_header_bomb_is_allocated() -> None:
    """In a process of its own that may grow by 128 MB only; 10 000 × 10 000 RGB would be 300 MB."""
    script = """
import re, resource, warnings
from pathlib import Path
from retrieval.errors import ImageError
from retrieval.images import ImageLimits, Preprocessing, decode_image
from tests.retrieval.encoded import FORMATS, encode, smooth
from tests.retrieval.test_images import BOMBS
warnings.simplefilter("ignore")
small = Preprocessing(height=48, width=64)
for image_format in FORMATS:
    decode_image(encode(smooth(64, 48), image_format), small)
size = int(re.search(r"VmSize:\\s*(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
resource.setrlimit(resource.RLIMIT_AS, (size + (128 << 20), -1))
for data in BOMBS.values():
    try:
        decode_image(data, small)
    except ImageError as error:
        print(error.code)
try:
    decode_image(BOMBS["png that Pillow only warns of"], small, ImageLimits(max_pixels=10**9))
except MemoryError:
    print("without the limit, memory ran out")
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["too_many_pixels"] * len(BOMBS) + ["without the limit, memory ran out"]


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "none.jpg"
    text = f"{path}: the photo cannot be read (No such file or directory). Check the path and its permissions."
    with refused(ImageError, text, "image_unreadable"):
        read_image(path, SMALL)


def test_a_folder_is_refused(tmp_path: Path) -> None:
    text = f"{tmp_path}: the photo cannot be read (Is a directory). Check the path and its permissions."
    with refused(ImageError, text, "image_unreadable"):
        read_image(tmp_path, SMALL)


def test_a_file_over_the_limit_is_refused_without_reading_it_all(tmp_path: Path) -> None:
    path = tmp_path / "large.jpg"
    with path.open("wb") as file:
        os.truncate(file.fileno(), 1 << 40)  # a terabyte of nothing
    text = f"{path}: the image has more than {DEFAULT_LIMITS.max_bytes} bytes. {SMALLER}"
    with refused(ImageError, text, "body_too_large"):
        read_image_bytes(path)


def test_a_file_is_decoded_as_its_bytes_are(tmp_path: Path) -> None:
    data = encode(smooth(320, 240), "JPEG", 8)
    path = tmp_path / "named.png"
    path.write_bytes(data)
    assert np.array_equal(read_image(path, SMALL), decode_image(data, SMALL))


# Damage

DAMAGEABLE = [
    encode(smooth(48, 32), image_format, 6, **options)
    for image_format, options in [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("PNG", {}),
        ("WEBP", {}),
        ("WEBP", {"lossless": False}),
        ("HEIC", {}),
    ]
]


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@settings(max_examples=examples(150), deadline=20_000)
@given(
    st.sampled_from(DAMAGEABLE),
    st.lists(st.tuples(st.floats(0.0, 1.0, exclude_max=True), st.integers(0, 255)), max_size=6),
    st.none() | st.floats(0.0, 1.0),
)
def test_damaged_bytes_raise_nothing_but_image_errors(
    whole: bytes, flips: list[tuple[float, int]], kept: float | None
) -> None:
    data = bytearray(whole)
    for place, value in flips:
        data[int(place * len(data))] = value
    if kept is not None:
        del data[math.ceil(kept * len(data)) :]
    outcome = decoded_or_code(bytes(data))
    if isinstance(outcome, str):
        assert outcome in DAMAGE_CODES | {"too_many_pixels"}
    else:
        assert outcome.shape == (48, 64, 3)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@settings(max_examples=examples(60), deadline=20_000)
@given(st.lists(st.tuples(st.integers(6, 120), st.integers(0, 255)), min_size=1, max_size=6))
def test_a_jpeg_with_a_damaged_exif_block_is_always_decoded(flips: list[tuple[int, int]]) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010F], exif[0x0110], exif[0x0131] = "maker", "model", "software"
    exif[0x011A] = exif[0x011B] = 72.0
    block = bytearray(exif.tobytes().ljust(121, b"\0"))
    for place, value in flips:
        block[place] = value
    assert decode_image(encode(smooth(48, 32), "JPEG", exif=bytes(block)), SMALL).shape == (48, 64, 3)


@pytest.mark.photos
def test_scaled_decode_of_real_photos_is_close_to_the_full_one(photos_root: Path) -> None:
    photos = sorted((photos_root / "berlin_exif" / "images").iterdir())
    assert photos
    for photo in photos:
        scaled = read_image(photo, Preprocessing(height=256, width=256))
        full = read_image(photo, Preprocessing(height=256, width=256, jpeg_scaled_decode=False))
        assert difference(scaled, full) < 3.0
        assert scaled.std() > 10.0
