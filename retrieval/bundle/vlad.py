"""VLAD with a vocabulary, and a projection to fewer numbers: what they are, and how they are fitted, in numpy.

Local descriptors are shared among the centroids near them, and what they differ by from each is summed: Jégou et al.,
"Aggregating local descriptors into a compact image representation", CVPR 2010; Arandjelović et al., "NetVLAD", CVPR
2016. `retrieval.bundle.adaptation` says what it is for.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from retrieval.bundle.bundle import AdaptationReport, Bundle, DenseOutput, ProjectionReport, VocabularyReport
from retrieval.bundle.principal_components import gram, principal_components, signed
from retrieval.errors import ParameterError, counted
from retrieval.index.vectors.faiss_library import faiss_module, set_up_training

Float32Array = NDArray[np.float32]
SMALLEST_LENGTH: Final = 1e-12
# Residuals of a centroid shorter than this, of cells that hardly belong to it, are not stretched to unit length.
SMALLEST_RESIDUAL: Final = 0.1
# Of fewer photos nothing is learnt of a place.
LEAST_PHOTOS: Final = 10
_SEED: Final = 14
# The best of so many short runs of k-means is carried on: as good as the best of long ones, in half the time.
_KMEANS_TRIES: Final = 4
_KMEANS_SHORT: Final = 10
_KMEANS_STEPS: Final = 20
# A centroid of fewer local descriptors than this says nothing of the place.
_LEAST_PER_CENTROID: Final = 16
# Channels that vary less than this share of what the liveliest does say nothing: no more is made of them.
_SMALLEST_DEVIATION: Final = 1e-3
# Directions whose singular value is below this share of the largest one are not told from the rounding of weights to
# fp16, which dividing by the value would enlarge.
_SMALLEST_SINGULAR: Final = 0.01
# Photos whose residuals, of about unit length, differ by less than this are the same.
_SAME: Final = 1e-4
# Of random directions beside the last principal one.
_RANDOM_GAIN: Final = 0.4
# Numbers of an adapted descriptor.
SMALLEST_DIM: Final = 16


@dataclass(frozen=True)
class AdaptationSettings:
    """How a bundle is adapted. The values were chosen on photos of two places; see docs/explanation/adaptation.md.

    Attributes:
        centroids: of each vocabulary; fewer where there are few photos.
        sharpness: of soft assignment: a centroid whose squared distance is larger by 2 / sharpness gets 1/e as much.
        residual_dim: numbers that the residuals are projected to, at most.
        mean_dim: numbers that the mean local descriptors are projected to, at most.
        mean_weight: of these beside the residuals.
        power: of the singular values by which the residuals' principal directions are divided.
        vocabulary_photos: the first photos, whose local descriptors the vocabulary comes from; fewer where the dense
            outputs of so many take more than a gigabyte.
        local_descriptors: at most so many of each dense output.
        most_channels: local descriptors of more numbers are projected to `reduced_channels` first.
        reduced_channels: see there.
        exactly: whether layers that give fewer numbers than these are an error.
    """

    centroids: int = 32
    sharpness: float = 70.0
    residual_dim: int = 448
    mean_dim: int = 64
    mean_weight: float = 1.0
    power: float = 0.5
    vocabulary_photos: int = 1000
    local_descriptors: int = 60_000
    most_channels: int = 512
    reduced_channels: int = 256
    exactly: bool = False

    @classmethod
    def of_dim(cls, dim: int) -> Self:
        """Settings for descriptors of just D numbers.

        Raises:
            ParameterError: D is below 16.
        """
        if dim < SMALLEST_DIM:
            raise ParameterError(f"{dim} numbers are too few for an adapted descriptor", remedy="Give 16 or more")
        means = min(cls.mean_dim, dim // 8)
        return cls(residual_dim=dim - means, mean_dim=means, exactly=True)


@dataclass(frozen=True)
class Vocabulary:
    """The centroids of one dense output.

    Attributes:
        dense: the output.
        centroids: (K, c) float32.
        mean, deviation: (C,) float32, of the values of each channel; they are standardised first.
        mean_length: of the mean of all local descriptors of a photo, not standardised, typically.
        reduction: (C, c) float32, what local descriptors are projected by next; None leaves them as they are.
        fitted_on: how many local descriptors.
        quantisation_error: mean squared distance of these to their nearest centroid.
    """

    dense: DenseOutput
    centroids: Float32Array
    mean: Float32Array
    deviation: Float32Array
    mean_length: float
    reduction: Float32Array | None
    fitted_on: int
    quantisation_error: float

    def local(self, dense: Float32Array) -> Float32Array:
        """(N, C, h, w) float32 → (N, h·w, c) float32 local descriptors of unit length."""
        return self.standardised(dense.reshape(len(dense), dense.shape[1], -1).transpose(0, 2, 1))

    def standardised(self, values: Float32Array) -> Float32Array:
        """(..., C) float32 values of cells → (..., c) float32 local descriptors of unit length."""
        standard = (values - self.mean) / self.deviation
        return _unit(standard if self.reduction is None else standard @ self.reduction)

    def nearness(self, local: Float32Array) -> Float32Array:
        """(..., c) unit rows → (..., K): half of 1 less the squared distance to each centroid."""
        return np.asarray(local @ self.centroids.T - (self.centroids**2).sum(axis=1) / 2, np.float32)

    def residuals(self, local: Float32Array, sharpness: float) -> Float32Array:
        """(N, P, c) → (N, K·c) float32: the residuals, summed for each centroid and made unit length.

        Divided by the root of K besides, so that rows have unit length where every centroid has local descriptors.
        """
        exponents = sharpness * self.nearness(local)
        shares = np.exp(exponents - exponents.max(axis=2, keepdims=True))
        shares /= shares.sum(axis=2, keepdims=True)
        sums = shares.transpose(0, 2, 1) @ local - shares.sum(axis=1)[:, :, None] * self.centroids
        return _unit(sums, SMALLEST_RESIDUAL).reshape(len(local), -1) * self.residual_scale

    @property
    def residual_scale(self) -> np.float32:
        """One by the root of K."""
        return np.float32(len(self.centroids) ** -0.5)

    def error_of(self, local: Float32Array) -> float:
        """Mean squared distance of local descriptors (n, c), unit rows, to their nearest centroid."""
        return float((1.0 - 2.0 * self.nearness(local).max(axis=-1)).mean())

    def report(self) -> VocabularyReport:
        """What the manifest says."""
        return VocabularyReport(
            layer=self.dense.layer,
            centroids=len(self.centroids),
            fitted_on=self.fitted_on,
            quantisation_error=self.quantisation_error,
        )


@dataclass(frozen=True)
class Adaptation:
    """What a bundle is adapted with.

    Attributes:
        vocabularies: one for each dense output.
        centre: (V,) float32, mean of the joined residuals of the photos.
        residual_projection: (V, r) float32, principal directions divided by their singular values to the power.
        mean_projection: (M, m) float32, directions of the joined mean local descriptors, not centred: what all photos
            of the place share stays in the descriptor, and a photo of something else lacks it.
        settings: how it was fitted.
        photos: on how many.
        principal: how many of the residuals' directions are principal ones; the others are random.
        explained: share of the residuals' variance in the principal directions.
    """

    vocabularies: Sequence[Vocabulary]
    centre: Float32Array
    residual_projection: Float32Array
    mean_projection: Float32Array
    settings: AdaptationSettings
    photos: int
    principal: int
    explained: float

    @property
    def dim(self) -> int:
        """D, numbers in a descriptor."""
        return int(self.residual_projection.shape[1] + self.mean_projection.shape[1])

    def describe(self, dense: Sequence[Float32Array]) -> Float32Array:
        """The descriptors that the graph computes, in numpy: (N, C, h, w) float32 each → (N, D) float32, unit rows."""
        return self.projected(*aggregated(self.vocabularies, dense, self.settings.sharpness))

    def projected(self, residuals: Float32Array, means: Float32Array) -> Float32Array:
        """Joined residuals (N, V) and joined mean local descriptors (N, M) → descriptors (N, D) float32, unit rows."""
        projected = _unit((residuals - self.centre) @ self.residual_projection)
        return _unit(np.concatenate([projected, self.settings.mean_weight * (means @ self.mean_projection)], axis=1))

    def report(self, base: Bundle, fitted_on: str) -> AdaptationReport:
        """What the manifest says.

        Args:
            base: the bundle that was adapted; where it was adapted before, the first base is named.
            fitted_on: the photos, for people.
        """
        before = base.manifest.adaptation
        return AdaptationReport(
            base_name=base.name if before is None else before.base_name,
            base_fingerprint=base.fingerprint if before is None else before.base_fingerprint,
            fitted_on=fitted_on,
            photos=self.photos,
            vocabularies=tuple(vocabulary.report() for vocabulary in self.vocabularies),
            projection=ProjectionReport(
                from_dim=len(self.centre) + len(self.mean_projection),
                dim=self.dim,
                principal=self.principal,
                power=self.settings.power,
                explained=self.explained,
            ),
        )


def too_few_photos(photos: int) -> ParameterError:
    """Why a bundle is not adapted to so few photos."""
    return ParameterError(
        f"a bundle is adapted to {LEAST_PHOTOS} photos or more; {counted(photos, 'photo')} can be read",
        remedy="Give more photos of the place, or leave adapting out",
    )


def fit_vocabulary(output: DenseOutput, batches: Sequence[Float32Array], settings: AdaptationSettings) -> Vocabulary:
    """Centroids of local descriptors, as many of each photo, drawn at random."""
    rng = np.random.default_rng(_SEED)
    photos = sum(len(batch) for batch in batches)
    cells = batches[0].shape[2] * batches[0].shape[3]
    each = max(1, min(cells, settings.local_descriptors // photos))
    drawn = [
        photo.reshape(photo.shape[0], -1)[:, rng.choice(cells, each, replace=False)].T
        for batch in batches
        for photo in batch
    ]
    values = np.concatenate(drawn)[: settings.local_descriptors]
    lengths = [np.linalg.norm(batch.mean(axis=(2, 3)), axis=1) for batch in batches]
    deviation = values.std(axis=0, dtype=np.float64)
    vocabulary = Vocabulary(
        output,
        centroids=np.empty((0, values.shape[1]), np.float32),
        mean=values.mean(axis=0, dtype=np.float64).astype(np.float32),
        deviation=np.maximum(deviation, max(_SMALLEST_DEVIATION * deviation.max(), 1e-30)).astype(np.float32),
        mean_length=max(float(np.concatenate(lengths).mean()), 1e-30),
        reduction=None,
        fitted_on=len(values),
        quantisation_error=0.0,
    )
    if values.shape[1] > settings.most_channels:
        reduction = leading_directions(vocabulary.standardised(values), settings.reduced_channels)
        vocabulary = replace(vocabulary, reduction=reduction)
    local = vocabulary.standardised(values)
    centroids = _kmeans(local, min(settings.centroids, max(1, len(local) // _LEAST_PER_CENTROID)))
    vocabulary = replace(vocabulary, centroids=centroids)
    return replace(vocabulary, quantisation_error=max(0.0, vocabulary.error_of(local)))


def _kmeans(rows: Float32Array, count: int) -> Float32Array:
    """(count, c) float32 centroids of rows (n, c); the same rows give the same bits."""
    faiss = faiss_module()
    set_up_training(faiss)  # a search before leaves other threads and thresholds, and those other bits
    limits = {"seed": _SEED, "min_points_per_centroid": 1, "max_points_per_centroid": len(rows)}
    first = faiss.Kmeans(rows.shape[1], count, niter=_KMEANS_SHORT, nredo=_KMEANS_TRIES, **limits)
    first.train(rows)
    best = faiss.Kmeans(rows.shape[1], count, niter=_KMEANS_STEPS, **limits)
    best.train(rows, init_centroids=first.centroids)
    return np.asarray(best.centroids, np.float32)


def aggregated(
    vocabularies: Sequence[Vocabulary], dense: Sequence[Float32Array], sharpness: float
) -> tuple[Float32Array, Float32Array]:
    """Joined residuals (N, V) and joined mean local descriptors (N, M), float32; the latter unit rows."""
    residuals, means = [], []
    for place, (vocabulary, values) in enumerate(zip(vocabularies, dense, strict=True)):
        share = layer_share(vocabularies, place)
        residuals.append(share * vocabulary.residuals(vocabulary.local(values), sharpness))
        means.append(share / vocabulary.mean_length * values.mean(axis=(2, 3)))
    return np.concatenate(residuals, axis=1), _unit(np.concatenate(means, axis=1))


def layer_share(vocabularies: Sequence[Vocabulary], place: int) -> float:
    """The length of a layer's part, such that all parts together have unit length."""
    weights = np.array([vocabulary.dense.weight for vocabulary in vocabularies])
    return float(weights[place] / np.linalg.norm(weights))


def residual_scales(vocabularies: Sequence[Vocabulary]) -> Float32Array:
    """(V, 1) float32: what makes joined residuals of cells of unit length, as the graph has them, those of numpy."""
    scales = [
        np.full(
            (vocabulary.centroids.size, 1), layer_share(vocabularies, place) * vocabulary.residual_scale, np.float32
        )
        for place, vocabulary in enumerate(vocabularies)
    ]
    return np.concatenate(scales)


def principal_directions(
    residuals: Float32Array, settings: AdaptationSettings
) -> tuple[Float32Array, Float32Array, int, float]:
    """What is fitted to the joined residuals (n, V) of n photos.

    Few photos span few directions. Others, random ones at right angles to them, fill the descriptor up: photos that are
    appended later, and queries, differ from each other there.

    Returns:
        centre (V,), projection (V, r), how many directions are principal ones, and their share of the variance.
    """
    count, length = residuals.shape
    dim = min(settings.residual_dim, length)
    components = principal_components(residuals)
    singular = components.singular
    spanned = int((singular > max(_SMALLEST_SINGULAR * singular[0], _SAME)).sum())
    kept = min(dim, count - 1, spanned)
    directions = components.directions(kept)
    parts = [directions / ((singular[:kept] / singular[0]) ** settings.power)] if kept else []
    if kept < dim:
        random = np.random.default_rng(_SEED).standard_normal((length, dim - kept), np.float32)
        random -= directions @ (directions.T @ random)
        random = np.linalg.qr(random)[0]
        # So many directions stand for all that are left.
        gain = _RANDOM_GAIN * np.sqrt((length - kept) / (dim - kept))
        divisor = (singular[kept - 1] / singular[0]) ** settings.power if kept else 1.0
        parts.append(random * gain / divisor)
    projection = np.ascontiguousarray(np.concatenate(parts, axis=1), np.float32)
    return components.centre, projection, kept, components.explained(kept)


def leading_directions(values: Float32Array, dim: int) -> Float32Array:
    """(C, d) float32: the d directions with the most of values (n, C), d at most `dim` and C."""
    _, directions = np.linalg.eigh(gram(values.T))
    kept = min(dim, values.shape[1])
    return rounded(signed(np.ascontiguousarray(directions[:, ::-1][:, :kept], np.float32)))


def rounded(values: NDArray[np.floating[Any]]) -> Float32Array:
    """The values as the graph stores them, in fp16, so that numpy and graph compute with the same."""
    return np.asarray(values, np.float16).astype(np.float32)


def _unit(values: NDArray[np.floating[Any]], smallest: float = SMALLEST_LENGTH) -> Float32Array:
    """Rows divided by their length, or by the smallest one."""
    length = np.linalg.norm(values, axis=-1, keepdims=True)
    return np.asarray(values / np.maximum(length, smallest), np.float32)
