"""The bundle: an exported model with its own preprocessing. The only way a model reaches an index or a server."""

import hashlib
import shlex
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from retrieval.artefact import FileRecord, Manifest, kind_of, verify_files
from retrieval.errors import BundleError, ParameterError
from retrieval.images import Preprocessing
from retrieval.index.folder import CURRENT_NAME, VERSIONS_NAME, current_version

INPUT_NAME: Final = "images"
OUTPUT_NAME: Final = "descriptors"

# The folder in a version of a place index that holds its bundle.
HELD_NAME: Final = "bundle"
Precision = Literal["fp32", "fp16", "int8"]
_LARGEST_WEIGHT: Final = 1000.0


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
        power: of the singular values by which directions are divided; see `retrieval.bundle.whitening`.
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
        calibration_images: how many photos its quantisation ranges come from; 0 where it has none.
        kept_in_fp32: layers that stay fp32 because quantising them hurts most.
        accepted_loss: it fails the precision check, and was written because the maker accepted the loss.
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


class Provenance(BaseModel):
    """Where a model comes from: what a user must know before trusting or shipping it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    backbone: str
    aggregation: str
    objective: str | None = None
    weights: str
    weights_licence: str
    training_data: str
    recalls: dict[str, float] = Field(default_factory=dict)


class ParityReport(BaseModel):
    """How far the graph is from the model it was exported from, measured before the bundle was written.

    Attributes:
        reference: what it was compared with.
        images: on how many images.
        min_cosine: the worst image's cosine between both descriptors.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    reference: str
    images: int
    min_cosine: float


class DenseOutput(BaseModel):
    """A tensor of the fp32 graph that holds local descriptors: one for each cell of a grid over the image.

    Attributes:
        tensor: its name in the graph; float [N, channels, h, w], not normalised. It need not be an output of the graph.
        layer: of the backbone, for people, such as `blocks.4`.
        channels: numbers in a local descriptor.
        weight: of the layer's part in an adapted descriptor, before all parts are made unit length together.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    tensor: str = Field(min_length=1)
    layer: str
    channels: int = Field(ge=1)
    weight: float = Field(default=1.0, gt=0.0)


def layer_and_weight(text: str) -> tuple[str, float]:
    """A layer as users write it: `blocks.3:0.5` → `blocks.3` and 0.5; without a weight it is 1.

    What follows the last colon is a weight unless it begins with a letter: `blocks.9:value` has none.

    Raises:
        ParameterError: the weight is not a number above 0 (``bad_weight``).
    """
    text = text.strip()
    name, colon, written = text.rpartition(":")
    if not colon or written[:1].isalpha():
        return text, 1.0
    try:
        weight = float(written)
    except ValueError:
        weight = 0.0
    if not 0.0 < weight <= _LARGEST_WEIGHT:
        raise ParameterError(
            f"the weight {written!r} of {name or 'a layer'} is not a number above 0 and up to {_LARGEST_WEIGHT:g}",
            remedy="Write such as blocks.3:0.5; without a weight it is 1",
            code="bad_weight",
        )
    return name, weight


def layer_text(name: str, weight: float) -> str:
    """A layer as `layer_and_weight` reads it."""
    return name if weight == 1.0 else f"{name}:{weight:g}"


class VocabularyReport(BaseModel):
    """The centroids of one layer's local descriptors, and how well they fit the photos they come from.

    Attributes:
        layer: of the backbone.
        centroids: how many.
        fitted_on: how many local descriptors.
        quantisation_error: mean squared distance of a local descriptor, unit length, to its nearest centroid.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    layer: str
    centroids: int = Field(ge=1)
    fitted_on: int = Field(ge=1)
    quantisation_error: float = Field(ge=0.0)


class ProjectionReport(BaseModel):
    """How descriptors are projected to fewer numbers.

    Attributes:
        from_dim, dim: numbers before and after.
        principal: of the directions projected to, how many are principal ones of the photos; the others are random.
        power: of the singular values by which principal directions are divided.
        explained: share of the photos' variance in the principal directions, 0 to 1.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    from_dim: int = Field(ge=1)
    dim: int = Field(ge=1)
    principal: int = Field(ge=0)
    power: float = Field(ge=0.0, le=1.0)
    explained: float


class AdaptationReport(BaseModel):
    """How a bundle was fitted to the photos of a place.

    Attributes:
        base_name, base_fingerprint: of the bundle that was adapted.
        fitted_on: the photos, for people.
        photos: how many.
        vocabularies: one for each dense output.
        projection: of the joined descriptors.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    base_name: str
    base_fingerprint: str
    fitted_on: str
    photos: int = Field(ge=1)
    vocabularies: tuple[VocabularyReport, ...] = Field(min_length=1)
    projection: ProjectionReport


class BundleManifest(Manifest):
    """The manifest of a bundle. Version 2 knows dense outputs and adaptations.

    Attributes:
        name: for people.
        descriptor_dim: D.
        preprocessing: from a photo to the graph's input.
        graphs: the ONNX file of each precision.
        weight_storage: how the fp32 graph's file stores weights, but for an adaptation's projection, which is stored as
            fp16; it computes in fp32 either way.
        provenance: where the weights come from.
        parity: how near the fp32 graph is to what it was made from.
        dense_outputs: what the bundle can be adapted to a place with; none where it cannot.
        adaptation: how it was adapted, if it was.
        whitening: how the descriptors were whitened, if they were.
        precisions: how far the graphs of lower precision are from the fp32 graph.
        camera_model_input: for a bundle that takes a camera's whole frames, the size the graph itself resizes to.
        licence: of the weights.
        fingerprint: see `bundle_fingerprint`.
    """

    kind: Literal["bundle"] = "bundle"
    format_version: Literal[1, 2] = 2
    name: str = Field(min_length=1)
    descriptor_dim: int = Field(ge=1)
    preprocessing: Preprocessing
    graphs: dict[Precision, str]
    weight_storage: Literal["fp32", "fp16"] = "fp32"
    provenance: Provenance
    parity: ParityReport | None = None
    dense_outputs: tuple[DenseOutput, ...] = ()
    adaptation: AdaptationReport | None = None
    whitening: WhiteningReport | None = None
    precisions: dict[Precision, PrecisionReport] = Field(default_factory=dict)
    camera_model_input: Preprocessing | None = None
    licence: str
    fingerprint: str = Field(pattern=r"^[0-9a-f]{64}$")

    @model_validator(mode="after")
    def _check_graphs(self) -> Self:
        if "fp32" not in self.graphs:
            raise ValueError("a bundle needs an fp32 graph")
        missing = [name for name in self.graphs.values() if name not in self.files]
        if missing:
            raise ValueError(f"graphs {missing} are not among the files")
        expected = bundle_fingerprint(self.files[self.graphs["fp32"]], self.preprocessing)
        if self.fingerprint != expected:
            raise ValueError(f"the fingerprint is not that of graph and preprocessing ({expected[:12]}…)")
        return self


@dataclass(frozen=True, slots=True)
class Bundle:
    """An opened and verified bundle."""

    folder: Path
    manifest: BundleManifest

    @property
    def name(self) -> str:
        """The model's name for people."""
        return self.manifest.name

    @property
    def fingerprint(self) -> str:
        """SHA-256 over graph and preprocessing: descriptors are comparable exactly when it is equal."""
        return self.manifest.fingerprint

    @property
    def preprocessing(self) -> Preprocessing:
        """How an image becomes the graph's input."""
        return self.manifest.preprocessing

    @property
    def descriptor_dim(self) -> int:
        """D, the length of a descriptor."""
        return self.manifest.descriptor_dim

    @property
    def is_adaptable(self) -> bool:
        """Whether it can be adapted to a place: its graph has dense outputs."""
        return bool(self.manifest.dense_outputs)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, 3) of an image as the graph takes it."""
        return self.preprocessing.height, self.preprocessing.width, 3

    def graph_path(self, precision: Precision) -> Path:
        """The ONNX file of a precision.

        Raises:
            BundleError: the bundle has none of that precision.
        """
        name = self.manifest.graphs.get(precision)
        if name is None:
            source = shlex.quote(str(self.folder))
            raise BundleError(
                f"the bundle has no {precision} graph",
                where=str(self.folder),
                remedy=f"Choose among {', '.join(self.manifest.graphs)}; or make one that has it, and index with that: "
                f"sightfix export {source} --precision {precision} --photos PHOTOS --out FOLDER",
                code="precision_not_found",
            )
        return self.folder / name


def bundle_fingerprint(graph: FileRecord, preprocessing: Preprocessing) -> str:
    """SHA-256 in hex over the fp32 graph's hash and the preprocessing in canonical JSON."""
    text = f"{graph.sha256}\n{preprocessing.model_dump_json()}"
    return hashlib.sha256(text.encode()).hexdigest()


def open_bundle(named: Path | None = None) -> Bundle:
    """Open a bundle and check every file against its manifest.

    Args:
        named: see `bundle_folder`.

    Raises:
        BundleError: no bundle, another format version, a missing or damaged file.
        IndexNotFoundError: CURRENT of a place index names a version that does not exist.
    """
    folder = bundle_folder(named)
    manifest = BundleManifest.read(folder, BundleError)
    verify_files(folder, manifest.files, error_type=BundleError)
    return Bundle(folder=folder, manifest=manifest)


def bundle_folder(named: Path | None) -> Path:
    """The folder of a bundle as users name it.

    Args:
        named: its own folder; that of a place index, or of a version, for the bundle that the (current) version holds;
            None, or ``default`` where there is no such folder, for the one shipped with sightfix.

    Raises:
        BundleError: the version holds no bundle.
        IndexNotFoundError: CURRENT names a version that does not exist.
    """
    if named is None or (named == Path("default") and not named.exists()):
        return default_bundle_folder()
    folder = named / VERSIONS_NAME / current_version(named) if (named / CURRENT_NAME).exists() else named
    if kind_of(folder) != "place-index":
        return folder
    if not (folder / HELD_NAME).is_dir():
        raise BundleError(
            "this version of a place index holds no bundle",
            where=str(folder),
            remedy="Name the folder of the bundle that it was described with",
        )
    return folder / HELD_NAME


def default_bundle_folder() -> Path:
    """The folder of the bundle shipped with sightfix (EfficientNet-Lite0, ImageNet weights, GeM)."""
    return Path(str(resources.files("retrieval"))) / "default_bundle"
