import sys

import cv2
import numpy as np
import pytest
from PIL import Image

from retrieval.errors import ImageError, MissingExtraError
from retrieval.verification.local_features import (
    NO_FEATURES,
    FeatureSettings,
    decode_features,
    extract_features,
    opencv_module,
)
from tests.retrieval.encoded import encode
from tests.retrieval.refusal import refused
from tests.textured import textured

SETTINGS = FeatureSettings()


def test_features_are_few_small_and_of_one_length() -> None:
    features = extract_features(textured(1), FeatureSettings(max_points=100))
    assert features.points.shape == (100, 2)
    assert features.points.dtype == np.uint16
    assert features.descriptors.shape == (100, 128)
    assert features.descriptors.dtype == np.uint8
    lengths = np.linalg.norm(features.descriptors.astype(np.float64), axis=1)
    assert lengths == pytest.approx(255.0, rel=0.02)
    assert features.points.nbytes + features.descriptors.nbytes == FeatureSettings(max_points=100).max_bytes


def test_points_lie_in_the_picture_the_strongest_first() -> None:
    picture = textured(2)
    features = extract_features(picture, SETTINGS)
    x, y = features.pixels.T
    assert 0 <= x.min() <= x.max() <= picture.shape[1]
    assert 0 <= y.min() <= y.max() <= picture.shape[0]
    fewer = extract_features(picture, FeatureSettings(max_points=50))
    assert {tuple(point) for point in fewer.points} <= {tuple(point) for point in features.points[:60]}


def test_an_even_wall_has_none() -> None:
    assert len(extract_features(np.full((200, 200, 3), 90, np.uint8), SETTINGS)) == 0
    assert len(NO_FEATURES.pixels) == 0


def test_a_large_photo_is_reduced_first() -> None:
    data = encode(Image.fromarray(textured(3, (1000, 500))), "PNG")
    features = decode_features(data, FeatureSettings(max_side=200))
    assert features.pixels[:, 0].max() <= 200
    assert features.pixels[:, 1].max() <= 100


def test_what_is_no_image_is_named() -> None:
    with pytest.raises(ImageError, match=r"wall\.jpg"):
        decode_features(b"\xff\xd8\xff", SETTINGS, where="wall.jpg")


def test_opencv_starts_no_threads_of_its_own() -> None:
    cv2.setNumThreads(4)
    extract_features(textured(4), SETTINGS)
    assert cv2.getNumThreads() == 1


def test_without_opencv_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    text = "re-ranking needs OpenCV (import of cv2 halted; None in sys.modules). Run: pip install 'sightfix[rerank]'."
    with refused(MissingExtraError, text, "missing_extra"):
        opencv_module()
