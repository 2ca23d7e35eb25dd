"""Describe the photos of all evaluation sets with a checkpoint, rank exactly, and measure its heat maps."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import ParameterError
from retrieval.evaluation import Protocol, exact_ranking, first_hits
from retrieval.evaluation.eval_set import EvalSet, Truth
from retrieval.images import Preprocessing
from retrieval.references.reference import Reference
from training.comparison.errors import ComparisonError
from training.comparison.evaluation_record import HEAT_QUERIES, HEAT_TOP, EvaluationKey, EvaluationRecord
from training.describing import describe_cached
from training.encoder import Encoder
from training.heat_maps import condensation
from training.photo_cache import PhotoCache, fill_photo_cache
from training.run_observer import RunObserver

_PAIRS_AT_ONCE: Final = 16


@dataclass(frozen=True)
class EvalPhotos:
    """The photos of all evaluation sets, decoded once; sets may share photos.

    Attributes:
        cache: each distinct photo once.
        rows: by evaluation set, the cache's rows of its database and of its queries.
    """

    cache: PhotoCache
    rows: Mapping[str, tuple[NDArray[np.int64], NDArray[np.int64]]]

    @classmethod
    def decode(
        cls, eval_sets: Sequence[EvalSet], image: Preprocessing, folder: Path, observer: RunObserver
    ) -> "EvalPhotos":
        """Decode them, or find them in the folder of decoded photos.

        Raises:
            ImageError, ReferenceDataError: a photo cannot be decoded; it is named.
        """
        distinct: dict[Path, int] = {}
        unique: list[Reference] = []

        def row(reference: Reference) -> int:
            if reference.path not in distinct:
                distinct[reference.path] = len(unique)
                # Ids are unique within one database only.
                unique.append(replace(reference, id=str(reference.path)))
            return distinct[reference.path]

        rows = {
            photos.name: (
                np.array([row(reference) for reference in photos.database], np.int64),
                np.array([row(reference) for reference in photos.queries], np.int64),
            )
            for photos in eval_sets
        }
        with observer.work("Decoding the evaluation sets", len(unique)) as advance:
            return cls(fill_photo_cache(folder, unique, image, on_progress=advance), rows)


def evaluate_encoder(
    encoder: Encoder,
    photos: EvalPhotos,
    truths: Mapping[str, Truth],
    keys: Mapping[str, EvaluationKey],
    observer: RunObserver,
) -> dict[str, EvaluationRecord]:
    """Evaluate an encoder on several sets; each photo is described once.

    Args:
        encoder: on the device to compute on.
        photos: decoded with the encoder's preprocessing.
        truths: of all evaluation sets, by name.
        keys: of those to evaluate.
        observer: is shown what takes a while.

    Raises:
        ComparisonError: the descriptors are not finite.
    """
    wanted = np.unique(np.concatenate([rows for name in keys for rows in photos.rows[name]]))
    with observer.work("Describing the evaluation sets", len(wanted)) as advance:
        descriptors = describe_cached(encoder, photos.cache, wanted, on_progress=advance)
    if not np.isfinite(descriptors).all():
        raise ComparisonError(
            "the descriptors are not finite: training has diverged",
            remedy="Lower optimiser.learning_rate, or set training.clip_norm",
            code="diverged",
        )
    records = {}
    for name, key in keys.items():
        database, queries = (descriptors[np.searchsorted(wanted, rows)] for rows in photos.rows[name])
        truth = truths[name]
        ranked = min(max(key.recall_at), len(database))
        rows, _ = exact_ranking(database, queries, ranked)
        heat_rows, activation, match = _heat(encoder, photos, truth, name, observer)
        records[name] = EvaluationRecord(
            key=key,
            ranked=ranked,
            first_hit=tuple(
                tuple(first_hits(truth.ground, rows, radius).tolist()) for radius in truth.protocol.radii_m
            ),
            heat_rows=tuple(heat_rows.tolist()),
            heat_activation=_known(activation),
            heat_match=_known(match),
        )
    return records


def evaluation_keys(encoder: str, identities: Mapping[str, str], protocol: Protocol) -> dict[str, EvaluationKey]:
    """The key of a checkpoint's evaluation on each set.

    Args:
        encoder: the checkpoint's hash.
        identities: `EvalSet.identity` by the set's name.
        protocol: how is counted.
    """
    return {name: EvaluationKey.of(encoder, photos, protocol) for name, photos in identities.items()}


_Heat = tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]


def _heat(encoder: Encoder, photos: EvalPhotos, truth: Truth, name: str, observer: RunObserver) -> _Heat:
    """Condensation on some queries, each with its nearest true photo; empty where the net cannot be looked into."""
    sample = truth.sample(HEAT_QUERIES)
    database, queries = photos.rows[name]
    ours, theirs = queries[sample], database[truth.nearest(sample)]
    activation, match = np.empty(len(sample)), np.empty(len(sample))
    try:
        with observer.work(f"Heat maps on {name}", len(sample), "pairs") as advance:
            _condense(encoder, photos.cache, (ours, theirs), (activation, match), advance)
    except ParameterError:
        return sample[:0], activation[:0], match[:0]
    return sample, activation, match


def _condense(
    encoder: Encoder,
    cache: PhotoCache,
    pairs: tuple[NDArray[np.int64], NDArray[np.int64]],
    shares: tuple[NDArray[np.float64], NDArray[np.float64]],
    advance: Callable[[int], None],
) -> None:
    for begin in range(0, len(pairs[0]), _PAIRS_AT_ONCE):
        some = slice(begin, begin + _PAIRS_AT_ONCE)
        ours, theirs = (cache.rows(rows[some]) for rows in pairs)
        found = condensation(encoder, ours, theirs, top=HEAT_TOP)
        shares[0][some], shares[1][some] = found.activation, found.match
        advance(len(ours))


def _known(shares: NDArray[np.float64]) -> tuple[float | None, ...]:
    return tuple(float(share) if np.isfinite(share) else None for share in shares)
