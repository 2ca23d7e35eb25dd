"""How the server's model sees photos: what to shrink them to before they are sent."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from retrieval.bundle import BundleManifest, default_bundle_folder
from retrieval.errors import BundleError, ServerError
from retrieval.images import Preprocessing
from sightfix.client.answers import ServerInfo
from sightfix.client.photos import EncodedPhoto, Photo, encode_photo

Resize = Literal["model"] | Preprocessing | None


class Eyesight:
    """What a client knows of the model that sees its photos.

    Args:
        resize: "model" to ask the server; a preprocessing where the caller knows; None to send photos as they are.
    """

    def __init__(self, resize: Resize) -> None:
        self._resize = resize
        self._known = _Known(resize) if isinstance(resize, Preprocessing) else None

    @property
    def must_ask(self) -> bool:
        """Whether the server must be asked how its model sees photos before one is sent."""
        return self._resize is not None and self._known is None

    def told(self, info: ServerInfo) -> None:
        """Remember how the server's model sees photos.

        Raises:
            ServerError: the server does not say (``preprocessing_unknown``).
        """
        self._known = _Known(_preprocessing_of(info), info.model.fingerprint)

    def encoded(self, photos: Sequence[Photo]) -> list[EncodedPhoto]:
        """The photos as they are sent."""
        known = self._known
        return [encode_photo(photo, known.preprocessing if known else None) for photo in photos]

    def seen_rightly(self, fingerprint: str | None) -> bool:
        """Whether the model that answered is the one that photos were shrunk for; if not, forget how that one sees.

        Args:
            fingerprint: of the model that answered, if the answer says so.
        """
        known = self._known.fingerprint if self._known else None
        if known is None or fingerprint in (None, known):
            return True
        self._known = None
        return False


@dataclass(frozen=True, slots=True)
class _Known:
    """A preprocessing, and the fingerprint of the model it belongs to (None: whoever gave it knows)."""

    preprocessing: Preprocessing
    fingerprint: str | None = None


def _preprocessing_of(info: ServerInfo) -> Preprocessing:
    if info.preprocessing is not None:
        return info.preprocessing
    # A server of before this was told; most serve the bundle we ship.
    shipped = BundleManifest.read(default_bundle_folder(), BundleError)
    if shipped.fingerprint == info.model.fingerprint:
        return shipped.preprocessing
    raise ServerError(
        f"the server does not say how its model {info.model.name} sees photos",
        remedy='Give the preprocessing of its bundle instead of resize="model", or do not resize',
        code="preprocessing_unknown",
    )
