"""The errors a user of sightfix can cause or meet: what is wrong, where, and what to do about it.

The command line prints them without a traceback; the service maps them to RFC 9457 problems by ``code``.
"""

from typing import ClassVar


def counted(count: int, one: str, many: str | None = None) -> str:
    """Put a number before its noun, as ``1 photo``, ``2 queries``, ``1,200 files are copies``.

    Args:
        count: how many.
        one: what follows the number 1: a noun, or a noun with its verb.
        many: what follows every other number; the regular plural of ``one`` where it is not given.
    """
    if count == 1:
        return f"1 {one}"
    if many is None and one.endswith("y") and one[-2:-1] not in "aeiou":
        many = f"{one[:-1]}ies"
    elif many is None:
        many = f"{one}{'es' if one.endswith(('s', 'x', 'ch', 'sh')) else 's'}"
    return f"{count:,} {many}"


class SightfixError(Exception):
    """A failure that a user can understand and act on.

    Args:
        what: what is wrong, one sentence without a full stop.
        where: the file, row or value it concerns, or None.
        remedy: what to do about it, one sentence without a full stop, or None.
        code: a stable machine-readable slug; the class gives the default.
    """

    default_code: ClassVar[str] = "error"

    def __init__(
        self, what: str, *, where: str | None = None, remedy: str | None = None, code: str | None = None
    ) -> None:
        self.what = what
        self.where = where
        self.remedy = remedy
        self.code = code or self.default_code
        super().__init__(str(self))

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        return f"{text}. {self.remedy}." if self.remedy else f"{text}."


class ParameterError(SightfixError):
    """A parameter has a value outside its domain."""

    default_code = "validation_error"


class ImageError(SightfixError):
    """Bytes that are not an image we read: empty, unknown format, truncated, too large.

    Codes: ``empty_body``, ``unsupported_media_type``, ``image_undecodable``, ``too_many_pixels``, ``body_too_large``.
    """

    default_code = "image_undecodable"


class ReferenceDataError(SightfixError):
    """A reference database that cannot be read: missing file or column, bad number, no positions."""

    default_code = "reference_data"


class ArtefactError(SightfixError):
    """A directory that is not the artefact it should be: missing file, wrong hash, unknown format version."""

    default_code = "artefact_damaged"


class BundleError(ArtefactError):
    """A bundle that cannot be opened or run."""

    default_code = "bundle_damaged"


class PlaceIndexError(ArtefactError):
    """A place index that cannot be opened or searched."""

    default_code = "place_index_damaged"


class IndexNotFoundError(SightfixError):
    """No place index, version or reference of that name."""

    default_code = "index_not_found"


class ModelIndexMismatchError(SightfixError):
    """The place index was described with another bundle than the one that is to answer queries."""

    default_code = "model_index_mismatch"


class StorageError(SightfixError):
    """The disk refused: full, read-only, or without permission."""

    default_code = "storage"


class StoreUnavailableError(SightfixError):
    """The engine that holds the place indexes cannot be reached, or refuses what it is asked."""

    default_code = "store_unavailable"


class MissingExtraError(SightfixError):
    """An optional dependency is not installed."""

    default_code = "missing_extra"


class ProviderUnavailableError(SightfixError):
    """A provider was asked for that this machine or installation does not have."""

    default_code = "provider_unavailable"


class EngineError(ArtefactError):
    """A compiled engine that cannot be built, opened or run: damaged, or made for another model or machine."""

    default_code = "engine_damaged"


class DeviceError(SightfixError):
    """The GPU refused: out of memory, a kernel that failed, a device that was lost."""

    default_code = "device"


class ServerError(SightfixError):
    """A running sightfix server refused or could not be reached."""

    default_code = "server"
