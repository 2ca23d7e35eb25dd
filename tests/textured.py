"""Photos with something to hold on to, seen again from elsewhere: for tests of local features."""

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from retrieval.geo import Position
from retrieval.images import RgbImage
from retrieval.references.reference import Reference
from tests.places import Places

# Another view of a flat front: turned a little, nearer, seen from the side.
VIEW: NDArray[np.float64] = np.array([[1.05, 0.12, -14.0], [-0.10, 1.02, 12.0], [1.5e-4, -1e-4, 1.0]])


def textured(seed: int, size: tuple[int, int] = (320, 240)) -> RgbImage:
    """A picture full of corners and blobs that no other seed shares."""
    random = np.random.default_rng(seed)
    width, height = size
    picture = np.full((height, width, 3), 128, np.uint8)
    for _ in range(160):
        colour = tuple(int(part) for part in random.integers(0, 256, 3))
        x, y = int(random.integers(0, width)), int(random.integers(0, height))
        w, h = (int(side) for side in random.integers(4, 40, 2))
        if random.random() < 0.5:
            cv2.rectangle(picture, (x, y), (x + w, y + h), colour, -1)
        else:
            cv2.circle(picture, (x, y), w // 2, colour, -1)
    return picture


def seen_from_elsewhere(picture: RgbImage, view: NDArray[np.float64] = VIEW) -> RgbImage:
    """The same through a homography, in dimmer light."""
    height, width = picture.shape[:2]
    warped = cv2.warpPerspective(picture, view, (width, height), borderMode=cv2.BORDER_REFLECT)
    return (warped * 0.75 + 10).astype(np.uint8)


def make_textured_places(folder: Path, count: int, *, first_seed: int = 0) -> Places:
    """Write `count` such photos, 100 m apart along a parallel; ids are ``photos/0000.png`` and so on."""
    photos = folder / "photos"
    photos.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(count):
        path = photos / f"{number:04d}.png"
        Image.fromarray(textured(first_seed + number)).save(path)
        position = Position(48.0, 11.0 + number * 100.0 / 74_400.0)
        rows.append(Reference(id=f"photos/{number:04d}.png", path=path, position=position))
    return Places(folder, rows)
