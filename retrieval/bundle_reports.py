"""What a bundle states about how it was made: measured before it was written, kept in its manifest."""

from pydantic import BaseModel, ConfigDict, Field


class RecallChange(BaseModel):
    """Recall@1 of one evaluation set before and after a step of the export.

    Only queries with a true match in the database count. Shares, 0 to 1.

    Attributes:
        evaluation_set: its name.
        radius_m: metres within which a match is right.
        queries: how many count.
        chance: what a random ranking reaches.
        before, after: recall@1.
        change: after - before, of the same queries.
        low, high: 95 % interval of the change, bootstrap over places.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    evaluation_set: str
    radius_m: float
    queries: int = Field(ge=1)
    chance: float
    before: float
    after: float
    change: float
    low: float
    high: float


class WhiteningReport(BaseModel):
    """How the whitening in a bundle's graph was fitted.

    Attributes:
        from_dim: length of the descriptor before.
        dim: and after.
        power: of the singular values by which directions are divided; see `retrieval.whitening`.
        fitted_on: the photos, for people.
        photos: how many.
        explained: share of their descriptors' variance that is kept.
        recall: before and after, where evaluation sets were given.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    from_dim: int = Field(ge=1)
    dim: int = Field(ge=1)
    power: float = Field(ge=0.0, le=1.0)
    fitted_on: str
    photos: int = Field(ge=2)
    explained: float
    recall: tuple[RecallChange, ...] = ()


class PrecisionReport(BaseModel):
    """How far a graph of lower precision is from the fp32 graph, on real photos.

    Attributes:
        images: how many photos it was judged on.
        min_cosine, mean_cosine: of the worst photo, and over all.
        threshold: the worst cosine that passes.
        calibration_images: how many photos it was calibrated on; 0 where nothing is calibrated.
        kept_in_fp32: layers that stay fp32 because quantising them hurts most.
        accepted_loss: it fails the gate, and was written because the maker accepted the loss.
        recall: change from fp32, where evaluation sets were given.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    images: int = Field(ge=1)
    min_cosine: float
    mean_cosine: float
    threshold: float
    calibration_images: int = Field(default=0, ge=0)
    kept_in_fp32: tuple[str, ...] = ()
    accepted_loss: bool = False
    recall: tuple[RecallChange, ...] = ()
