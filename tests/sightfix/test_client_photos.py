"""How the client encodes photos: fewer bytes, the same descriptor, upright."""

import io
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from retrieval.bundle import Bundle
from retrieval.describer import Describer
from retrieval.errors import ServerError
from retrieval.images import Preprocessing, decode_image
from sightfix.client import SightfixClient
from sightfix.client.photos import Photo, encode_photo
from sightfix.toy_town import ToyTown, photographs, plan_queries


@pytest.fixture(scope="module")
def town_photos() -> list[np.ndarray]:
    """Three photos of the toy town, (768, 1024, 3)."""
    town = ToyTown(columns=1, rows=1)
    return [image for _, image in photographs(town, plan_queries(town, 3), (1024, 768))]


def jpeg(pixels: np.ndarray, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90, **options)
    return buffer.getvalue()


def cosine(describer: Describer, one: bytes, other: bytes) -> float:
    images = np.stack([decode_image(data, describer.bundle.preprocessing) for data in (one, other)])
    first, second = describer.describe(images)
    return float(first @ second)


def test_a_shrunk_photo_has_the_same_descriptor_in_fewer_bytes(
    describer: Describer, town_photos: list[np.ndarray]
) -> None:
    for pixels in town_photos:
        data = jpeg(pixels)
        sent = encode_photo(data, describer.bundle.preprocessing)
        assert sent.media_type == "image/webp"
        assert len(sent.data) < 0.6 * len(data)
        assert cosine(describer, data, sent.data) > 0.9999
        with Image.open(io.BytesIO(sent.data)) as image:
            assert image.size == (describer.bundle.preprocessing.width, describer.bundle.preprocessing.height)


def test_every_kind_of_photo_is_shrunk(describer: Describer, town_photos: list[np.ndarray], tmp_path: Path) -> None:
    pixels = town_photos[0]
    lossless = io.BytesIO()
    Image.fromarray(pixels).save(lossless, "PNG")
    (tmp_path / "photo.png").write_bytes(lossless.getvalue())
    kinds: list[Photo] = [tmp_path / "photo.png", lossless.getvalue(), pixels, Image.fromarray(pixels)]
    sent = [encode_photo(photo, describer.bundle.preprocessing).data for photo in kinds]
    assert len(set(sent)) == 1
    assert cosine(describer, lossless.getvalue(), sent[0]) > 0.9999


def test_a_photo_is_turned_upright_before_it_is_shrunk(describer: Describer, town_photos: list[np.ndarray]) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera stood on its side
    turned = jpeg(np.rot90(town_photos[1]), exif=exif)
    sent = encode_photo(turned, describer.bundle.preprocessing)
    assert cosine(describer, turned, sent.data) > 0.9999
    assert cosine(describer, jpeg(town_photos[1]), sent.data) > 0.99
    assert cosine(describer, jpeg(np.rot90(town_photos[1])), sent.data) < 0.95


def test_a_photo_that_is_small_already_is_sent_as_it_is(bundle: Bundle, town_photos: list[np.ndarray]) -> None:
    small = jpeg(town_photos[2][::3, ::3])
    assert encode_photo(small, bundle.preprocessing).data is small
    assert encode_photo(small).media_type == "image/jpeg"


def test_a_photo_too_long_for_webp() -> None:
    sent = encode_photo(np.zeros((2, 16_400, 3), np.uint8))
    assert sent.media_type == "image/png"


MODELS = {"a": Preprocessing(height=64, width=64), "b": Preprocessing(height=32, width=48)}


class SwappingServer:
    """Serves one model after the other; says what it sees in /info unless it is too old for that."""

    def __init__(self, *models: str, reports: bool = True) -> None:
        self.models = list(models)
        self.reports = reports
        self.infos = 0
        self.sizes: list[tuple[int, int]] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        model = dict.fromkeys(("name", "precision", "provider", "runtime", "device"), "x")
        if request.url.path == "/info":
            self.infos += 1
            known = {"preprocessing": MODELS[self.models[0]].model_dump()} if self.reports else {}
            index = {"name": "town", "version": "v", "size": 1, "type": "exact"}
            bounds = {"lat_min": 0, "lat_max": 1, "lon_min": 0, "lon_max": 1}
            info = {"sightfix_version": "0", "model": {**model, "fingerprint": self.models[0]}, "index": index}
            return httpx.Response(200, json={**info, "bounds": bounds, "limits": {}, **known})
        with Image.open(io.BytesIO(request.content)) as image:
            self.sizes.append(image.size)
        served = self.models.pop(0) if len(self.models) > 1 else self.models[0]
        answer = {"request_id": "r", "descriptor": [1.0], "model": {**model, "fingerprint": served}}
        return httpx.Response(200, json=answer)


def client_of(server: SwappingServer, monkeypatch: pytest.MonkeyPatch) -> SightfixClient:
    def transport(_: object, **arguments: object) -> httpx.AsyncBaseTransport:
        return httpx.MockTransport(server)

    monkeypatch.setattr(httpx.AsyncClient, "_init_transport", transport)
    return SightfixClient("http://127.0.0.1:9", resize="model")


def test_the_server_is_asked_once_what_its_model_sees(
    town_photos: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = SwappingServer("a")
    with client_of(server, monkeypatch) as client:
        for pixels in town_photos:
            client.describe(pixels)
    assert (server.infos, server.sizes) == (1, [(64, 64)] * 3)


def test_a_new_model_gets_photos_in_its_own_size(
    town_photos: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model changes between asking and answering: the photo is shrunk anew and sent again."""
    server = SwappingServer("a", "b")
    with client_of(server, monkeypatch) as client:
        assert client.describe(town_photos[0]).model.fingerprint == "a"
        assert client.describe(town_photos[0]).model.fingerprint == "b"
    assert (server.infos, server.sizes) == (2, [(64, 64), (64, 64), (48, 32)])


def test_servers_of_different_models_behind_one_address_do_not_loop(
    town_photos: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = SwappingServer("a", *"bababababa")
    with client_of(server, monkeypatch) as client:
        client.describe(town_photos[0])
        client.describe(town_photos[0])
    assert len(server.sizes) <= 4


def test_a_server_that_does_not_say_what_its_model_sees(
    town_photos: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    with client_of(SwappingServer("a", reports=False), monkeypatch) as client, pytest.raises(ServerError) as error:
        client.describe(town_photos[0])
    assert error.value.code == "preprocessing_unknown"
