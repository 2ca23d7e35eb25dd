"""Adapting a bundle to a place: a vocabulary of its local descriptors and a projection, both inside the graph.

The local descriptors of each dense output are aggregated by VLAD (Jégou et al., "Aggregating local descriptors into a
compact image representation", CVPR 2010) with a vocabulary from the place's own photos (Keetha et al., "AnyLoc: Towards
Universal Visual Place Recognition", RA-L 2024): soft assignment to centroids (Arandjelović et al., "NetVLAD", CVPR
2016), residuals summed for each centroid, each sum made unit length (Arandjelović & Zisserman, "All about VLAD", CVPR
2013). Principal component analysis of the same photos projects them to fewer numbers, whitened in part.

Residuals tell places apart, and say little of whether a photo shows anything like the place at all. The mean local
descriptor does; it is a part of the descriptor, too, and is not centred.

What comes out is an ordinary bundle, which can be adapted again: its dense outputs are kept.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Final

import numpy as np
import onnx
from numpy.typing import NDArray

from retrieval.bundle.adapted_graph import DescribeDensely, adapted_graph, dense_describer, vocabularies_in
from retrieval.bundle.bundle import Bundle
from retrieval.bundle.exportable import (
    MIN_COSINE_OF_ROUNDED_WEIGHTS,
    Describe,
    ExportableModel,
    compare_with_original,
    labelled,
)
from retrieval.bundle.onnx_graph import ADAPTATION_PREFIX, digest_of, restore_fp32_weights, store_weights_as_fp16
from retrieval.bundle.vlad import (
    Adaptation,
    AdaptationSettings,
    Float32Array,
    aggregated,
    fit_vocabulary,
    leading_directions,
    principal_directions,
    residual_scales,
    rounded,
)
from retrieval.bundle.writer import BundleContent, check_free, write_bundle
from retrieval.errors import BundleError, ParameterError
from retrieval.geo import hilbert_key
from retrieval.index.sampling import evenly_spaced

# More photos of a place than this do not change what is fitted, and take minutes.
MOST_PHOTOS: Final = 4000

# Of so many all are fitted to; of more a share that costs little beside describing them.
_USUAL_PHOTOS: Final = 1000
_ONE_IN: Final = 20
_SEED: Final = 14

# Of dense outputs held at once. Local descriptors of a hundred photos stand for a place's (benchmarks/RESULTS.md).
_MOST_DENSE_BYTES: Final = 1_000_000_000

# What an adapted graph is compared with.
IN_NUMPY: Final = "the same in numpy"

# Batches of decoded photos, (n, H, W, 3) uint8 RGB each.
Photos = Iterable[NDArray[np.uint8]]


@dataclass(frozen=True)
class FittedAdaptation:
    """An adaptation, and what it makes of the photos it was fitted on: they need not be described again.

    Attributes:
        adaptation: what was fitted.
        descriptors: (n, D) float32, unit rows, of the photos in their order.
    """

    adaptation: Adaptation
    descriptors: Float32Array


def photos_to_fit(lat: NDArray[np.float64], lon: NDArray[np.float64]) -> NDArray[np.int64]:
    """Which photos of a place a bundle is adapted to, in an order whose beginning is spread over the place, too.

    Args:
        lat, lon: (n,) degrees, where the photos were taken.

    Returns:
        rows: all of up to 1,000 photos, else 1,000 or one in 20, at most 4,000.
    """
    count = min(len(lat), MOST_PHOTOS, max(_USUAL_PHOTOS, len(lat) // _ONE_IN))
    along = np.argsort(hilbert_key(lat, lon), kind="stable")
    return np.random.default_rng(_SEED).permutation(along[evenly_spaced(len(along), count)])


def fit_adaptation(
    bundle: Bundle,
    photos: Photos,
    settings: AdaptationSettings | None = None,
    on_progress: Callable[[int], None] = lambda _: None,
) -> FittedAdaptation:
    """Fit a vocabulary and a projection to photos of a place.

    Args:
        bundle: an adaptable one.
        photos: batches of decoded photos, in an order whose beginning is spread over the place, too.
        settings: how.
        on_progress: called with how many photos were described since the last call.

    Raises:
        ParameterError: the bundle is not adaptable, there are fewer than two photos, or the layers give fewer numbers
            than the settings ask for.
        BundleError: the graph fails to run, or gives something that is not a number.
    """
    settings = settings or AdaptationSettings()
    dense_outputs = bundle.manifest.dense_outputs
    if not bundle.is_adaptable:
        raise ParameterError(
            f"the bundle {bundle.name} is not adaptable: its graph has no dense outputs",
            where=str(bundle.folder),
            remedy="Export it again from its checkpoint or with sightfix export timm:NAME, or leave adapting out",
        )
    describe = dense_describer(_graph_of(bundle), dense_outputs)
    batches = _described(photos, describe, on_progress)
    first = list(_until(batches, settings.vocabulary_photos, _MOST_DENSE_BYTES))
    if sum(len(batch[0]) for batch in first) < 2:
        raise ParameterError("a bundle cannot be adapted to fewer than two photos", where=str(bundle.folder))
    vocabularies = [
        fit_vocabulary(output, [batch[place] for batch in first], settings)
        for place, output in enumerate(dense_outputs)
    ]
    given = min(settings.residual_dim, sum(vocabulary.centroids.size for vocabulary in vocabularies))
    given += min(settings.mean_dim, sum(len(vocabulary.mean) for vocabulary in vocabularies))
    wanted = settings.residual_dim + settings.mean_dim
    if settings.exactly and given < wanted:
        raise ParameterError(
            f"the layers of {bundle.name} give descriptors of {given} numbers at most, not {wanted}",
            remedy="Ask for fewer (--dim)",
        )
    parts = [aggregated(vocabularies, batch, settings.sharpness) for batch in chain(first, batches)]
    residuals, means = (np.concatenate(part) for part in zip(*parts, strict=True))
    centre, projection, principal, explained = principal_directions(residuals, settings)
    scales = residual_scales(vocabularies)
    adaptation = Adaptation(
        vocabularies=vocabularies,
        centre=centre,
        residual_projection=rounded(scales * projection) / scales,
        mean_projection=leading_directions(means, settings.mean_dim),
        settings=settings,
        photos=len(means),
        principal=principal,
        explained=explained,
    )
    return FittedAdaptation(adaptation, adaptation.projected(residuals, means))


def adapt_bundle(
    bundle: Bundle,
    photos: Photos,
    folder: Path,
    fitted_on: str,
    *,
    settings: AdaptationSettings | None = None,
    replace_folder: bool = False,
    on_progress: Callable[[int], None] = lambda _: None,
) -> Bundle:
    """Fit a bundle to photos of a place and write the result, an ordinary bundle that can be adapted again.

    The graph is compared with the same computed in numpy before anything is written. It has the fp32 precision only;
    lower ones are made of it as of any bundle.

    Args:
        bundle: an adaptable one.
        photos: batches of decoded photos, in an order whose beginning is spread over the place, too.
        folder: where the adapted bundle shall be.
        fitted_on: the photos, for people.
        settings: how.
        replace_folder: whether a bundle that is already there may be replaced.
        on_progress: called with how many photos were described since the last call.

    Raises:
        ParameterError: the folder is taken, the bundle is not adaptable, or there are fewer than two photos.
        BundleError: the graph fails to run, or differs from numpy (``parity_failed``); nothing is written.
        StorageError: the disk refuses.
    """
    check_free(folder, replace=replace_folder)
    adaptation = fit_adaptation(bundle, photos, settings, on_progress).adaptation
    return write_adapted(bundle, adaptation, folder, fitted_on, replace_folder=replace_folder)


def write_adapted(
    bundle: Bundle, adaptation: Adaptation, folder: Path, fitted_on: str, *, replace_folder: bool = False
) -> Bundle:
    """Write the bundle that an adaptation makes; see `adapt_bundle`.

    Raises:
        ParameterError: the folder is taken.
        BundleError: the graph fails to run, or differs from numpy (``parity_failed``); nothing is written.
        StorageError: the disk refuses.
    """
    manifest, graph = bundle.manifest, _graph_of(bundle)
    layers = [vocabulary.dense.layer for vocabulary in adaptation.vocabularies]
    aggregation = f"VLAD of {', '.join(layers)} with a vocabulary of the place, projected"
    adapted = adapted_graph(graph, adaptation)
    model = ExportableModel(
        name=f"{_plain_name(bundle)}-adapted-{digest_of(adapted)}",
        graph=adapted,
        preprocessing=bundle.preprocessing,
        descriptor_dim=adaptation.dim,
        provenance=manifest.provenance.model_copy(update={"aggregation": aggregation, "recalls": {}}),
        licence=manifest.licence,
        original=in_numpy(graph, adaptation),
        original_name=IN_NUMPY,
    )
    model = replace(model, graph=labelled(adapted, model, {}))
    # The projection is most of the file, and rounded already; the backbone stays as exact as it was.
    store_weights_as_fp16(model.graph, "" if manifest.weight_storage == "fp16" else ADAPTATION_PREFIX)
    content = BundleContent(
        name=model.name,
        graphs={"fp32": model.graph},
        preprocessing=model.preprocessing,
        descriptor_dim=model.descriptor_dim,
        provenance=model.provenance,
        parity=compare_with_original(model, MIN_COSINE_OF_ROUNDED_WEIGHTS),
        licence=model.licence,
        weight_storage=manifest.weight_storage,
        dense_outputs=manifest.dense_outputs,
        adaptation=adaptation.report(bundle, fitted_on),
        camera_model_input=manifest.camera_model_input,
    )
    return write_bundle(folder, content, replace=replace_folder)


def in_numpy(graph: onnx.ModelProto, adaptation: Adaptation) -> Describe:
    """What an adapted graph computes, its dense outputs by ONNX Runtime on the CPU and the rest in numpy.

    Args:
        graph: that was adapted, fp32 weights.
        adaptation: fitted to its dense outputs.
    """
    describe = dense_describer(graph, [vocabulary.dense for vocabulary in adaptation.vocabularies])
    return lambda images: adaptation.describe(describe(images))


def quantisation_errors(bundle: Bundle, photos: Photos) -> NDArray[np.float64]:
    """How badly photos fit the vocabularies of an adapted bundle: as `VocabularyReport.quantisation_error`, of each.

    Args:
        bundle: an adapted one.
        photos: batches of decoded photos.

    Returns:
        (n, v): of each photo and each of the vocabularies.

    Raises:
        ParameterError: the bundle was not adapted.
        BundleError: its graph is not as `adapt_bundle` writes it.
    """
    graph = _graph_of(bundle)
    vocabularies = vocabularies_in(bundle, graph)
    describe = dense_describer(graph, bundle.manifest.dense_outputs)
    errors = [
        [
            [v.error_of(local) for local in v.local(dense)]
            for v, dense in zip(vocabularies, describe(images), strict=True)
        ]
        for images in photos
    ]
    if not errors:
        return np.empty((0, len(vocabularies)))
    return np.concatenate([np.array(batch).T for batch in errors])


def _graph_of(bundle: Bundle) -> onnx.ModelProto:
    return restore_fp32_weights(onnx.load(bundle.graph_path("fp32")))


def _plain_name(bundle: Bundle) -> str:
    """The name of a bundle without what an earlier adaptation added to it."""
    return re.sub(r"-adapted-[0-9a-f]{8}", "", bundle.name) if bundle.manifest.adaptation else bundle.name


def _described(
    photos: Photos, describe: DescribeDensely, on_progress: Callable[[int], None]
) -> Iterator[list[Float32Array]]:
    """The dense outputs of each batch."""
    for images in photos:
        dense = describe(images)
        if not all(np.isfinite(values).all() for values in dense):
            raise BundleError("the graph gave a local descriptor that is not finite")
        yield dense
        on_progress(len(images))


def _until(batches: Iterator[list[Float32Array]], photos: int, most_bytes: int) -> Iterator[list[Float32Array]]:
    """The first batches, until there are so many photos or bytes."""
    count = held = 0
    for batch in batches:
        yield batch
        count += len(batch[0])
        held += sum(values.nbytes for values in batch)
        if count >= photos or held >= most_bytes:
            return
