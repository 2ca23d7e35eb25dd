"""Two bundles side by side: what they state differently, and whether their descriptors may be mixed."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from retrieval.bundle import Bundle
from retrieval.describer import Describer
from retrieval.errors import ParameterError
from retrieval.images import read_image

_AT_ONCE: Final = 16


class FieldDifference(BaseModel):
    """A field of the manifest that differs.

    Attributes:
        field: its dotted name, such as `preprocessing.fit`; a file and its hash are one field.
        first, second: its values, None where it is not there.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    field: str
    first: Any
    second: Any


class DescriptorAgreement(BaseModel):
    """How near two bundles' descriptors of the same photos are.

    Attributes:
        photos: how many.
        mean_cosine, worst_cosine: between both descriptors of a photo.
        worst_photo: the one of the worst cosine.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    photos: int = Field(ge=1)
    mean_cosine: float
    worst_cosine: float
    worst_photo: str


class ComparedBundle(BaseModel):
    """Which bundle was compared."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    folder: str
    fingerprint: str
    descriptor_dim: int


class BundleComparison(BaseModel):
    """What came of it.

    Attributes:
        first, second: the bundles.
        comparable: whether descriptors of one may be searched among those of the other: fingerprints are equal.
        differences: fields of the manifest that differ, in the manifest's order.
        agreement: of their fp32 graphs, where photos were given.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    first: ComparedBundle
    second: ComparedBundle
    comparable: bool
    differences: tuple[FieldDifference, ...]
    agreement: DescriptorAgreement | None = None


def compare_bundles(first: Bundle, second: Bundle, agreement: DescriptorAgreement | None = None) -> BundleComparison:
    """Compare what two bundles state.

    Args:
        first, second: the bundles.
        agreement: see `measure_agreement`.
    """
    ours = dict(manifest_fields(first.manifest.model_dump(mode="json")))
    theirs = dict(manifest_fields(second.manifest.model_dump(mode="json")))
    return BundleComparison(
        first=_compared(first),
        second=_compared(second),
        comparable=first.fingerprint == second.fingerprint,
        differences=tuple(
            FieldDifference(field=field, first=ours.get(field), second=theirs.get(field))
            for field in dict.fromkeys([*ours, *theirs])
            if ours.get(field) != theirs.get(field)
        ),
        agreement=agreement,
    )


def _compared(bundle: Bundle) -> ComparedBundle:
    return ComparedBundle(
        name=bundle.name,
        folder=str(bundle.folder),
        fingerprint=bundle.fingerprint,
        descriptor_dim=bundle.descriptor_dim,
    )


def manifest_fields(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted fields of a manifest that have a value; a file's record is one field.

    Args:
        content: of the manifest, or of a table in it, as JSON has it.
        prefix: of the names.
    """
    for name, value in content.items():
        if isinstance(value, Mapping) and set(value) != {"sha256", "size"}:
            yield from manifest_fields(value, f"{prefix}{name}.")
        elif value is not None:
            yield f"{prefix}{name}", value


def measure_agreement(
    first: Bundle,
    second: Bundle,
    photos: Sequence[Path],
    *,
    threads: int | None = None,
    on_progress: Callable[[int], None] = lambda _: None,
) -> DescriptorAgreement:
    """Describe photos with the fp32 graphs of two bundles, on the CPU; each decodes them its own way.

    Args:
        first, second: of the same D.
        photos: at least one.
        threads: of the CPU.
        on_progress: called with the number of photos done since the last call.

    Raises:
        ParameterError: no photos, or descriptors of different lengths.
        ImageError: a photo cannot be read; it is named.
    """
    if first.descriptor_dim != second.descriptor_dim:
        raise ParameterError(
            f"descriptors have {first.descriptor_dim} and {second.descriptor_dim} numbers: there is no cosine between",
            remedy="Compare bundles of the same descriptor length, or compare their recall: sightfix evaluate",
        )
    if not photos:
        raise ParameterError("there are no photos to compare descriptors on", remedy="Give at least one")
    describers = [Describer(bundle, provider="cpu", threads=threads) for bundle in (first, second)]
    cosines: list[NDArray[np.float32]] = []
    for begin in range(0, len(photos), _AT_ONCE):
        some = photos[begin : begin + _AT_ONCE]
        ours, theirs = (
            describer.describe([read_image(photo, describer.bundle.preprocessing) for photo in some])
            for describer in describers
        )
        cosines.append((ours * theirs).sum(axis=1))
        on_progress(len(some))
    for describer in describers:
        describer.close()
    all_cosines = np.concatenate(cosines)
    worst = int(all_cosines.argmin())
    return DescriptorAgreement(
        photos=len(photos),
        mean_cosine=float(all_cosines.mean()),
        worst_cosine=float(all_cosines[worst]),
        worst_photo=str(photos[worst]),
    )
