"""The manifest of a place index: what it holds, how it is searched, and how good that was measured to be."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from retrieval.artefact import Manifest
from retrieval.index.vectors.candidates import CandidateParameters, IndexType
from retrieval.index.vectors.exact import Storage
from retrieval.localize.calibration import Calibration
from retrieval.verification.local_features import FeatureSettings


class BundleIdentity(BaseModel):
    """Which bundle described the references.

    Attributes:
        name, fingerprint: of the bundle.
        held: whether the version holds it, in its folder `bundle`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    fingerprint: str
    held: bool = False


class Bounds(BaseModel):
    """The smallest latitudes and longitudes that hold all references, degrees.

    `lon_min` is the western and `lon_max` the eastern edge: it is smaller where the box crosses the antimeridian.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    lat_min: float
    lat_max: float
    lon_min: float
    lon_max: float


class Source(BaseModel):
    """Where the references came from. `root` is the folder that relative paths in the table start from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    spec: str
    root: str
    skipped: int = 0


class RecallReport(BaseModel):
    """How much of what exact search finds the index returned, measured while it was built.

    Attributes:
        wanted: the recall@10 that the search was tuned to.
        at_1, at_10: share of the best and of the ten best rows, 0 to 1.
        queries: how many were asked: references, each of which may not find itself.
        milliseconds: median of one query on the machine that built it, alone in its batch.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    wanted: float = Field(ge=0, le=1)
    at_1: float = Field(ge=0, le=1)
    at_10: float = Field(ge=0, le=1)
    queries: int = Field(ge=1)
    milliseconds: float = Field(ge=0)


class WhiteningRecord(BaseModel):
    """The linear map that every descriptor of the index went through, and every query goes through; see `Whitening`.

    Attributes:
        from_dim: D of the bundle; the manifest's `descriptor_dim` is what is left.
        power: of the singular values by which directions were divided.
        explained: share of the descriptors' variance that is kept.
        fitted_on: how many references.
        score_stretch: by how much whitening spreads the scores of a query's ten best matches apart; what weighs matches
            by their scores counts in units of it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    from_dim: int = Field(ge=1)
    power: float = Field(ge=0, le=1)
    explained: float = Field(ge=0, le=1)
    fitted_on: int = Field(ge=1)
    score_stretch: float = Field(default=1.0, gt=0.0)


class LocalFeaturesRecord(BaseModel):
    """The local features that matches can be re-ranked with.

    Attributes:
        settings: that they were computed with, and a query's are computed with.
        without: how many references have none, because their photos could not be read when the index was written.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    settings: FeatureSettings
    without: int = Field(ge=0)


class DescribingRecord(BaseModel):
    """What the descriptors depend on beside photos and bundle: with the same, unchanged photos need no describing.

    Attributes:
        precision: of the bundle's graphs, which one.
        max_bytes, max_pixels: larger photos were refused.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    precision: str
    max_bytes: int = Field(ge=0)
    max_pixels: int = Field(ge=0)


class PlaceIndexManifest(Manifest):
    """The manifest of a place index.

    Version 2 knows approximate types, whitening, recall and calibration; version 3 holds its bundle, and knows how far
    apart its scores lie.

    Attributes:
        score_spread: how far the scores of a reference's ten best matches lie apart, see `score_spread`; None in
            versions that were written before it was measured.
        whitening: of indexes that were written before bundles were adapted instead.
    """

    kind: Literal["place-index"] = "place-index"
    format_version: Literal[1, 2, 3] = 3
    name: str
    version: str
    bundle: BundleIdentity
    descriptor_dim: int = Field(ge=1)
    metric: Literal["cosine"] = "cosine"
    index_type: IndexType = "exact"
    storage: Storage
    candidates: CandidateParameters | None = None
    recall: RecallReport | None = None
    score_spread: float | None = Field(default=None, gt=0.0)
    whitening: WhiteningRecord | None = None
    calibration: Calibration | None = None
    describing: DescribingRecord | None = None
    local_features: LocalFeaturesRecord | None = None
    calibration_photos: int = Field(default=0, ge=0)
    count: int = Field(ge=1)
    bounds: Bounds
    source: Source

    @model_validator(mode="after")
    def _type_and_candidates_agree(self) -> Self:
        if self.index_type != (self.candidates.type if self.candidates else "exact"):
            raise ValueError(f"an index of type {self.index_type} with candidates of another")
        return self

    @property
    def query_dim(self) -> int:
        """Length of the descriptors that are searched for: the bundle's D."""
        return self.whitening.from_dim if self.whitening else self.descriptor_dim
