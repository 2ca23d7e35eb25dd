"""Composes epochs: samples queries, chooses their positives, mines negatives, fills batches."""

from collections.abc import Mapping
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import counted
from training.geopair.batches import BatchRules, Composition, EpochBatches, compose_batches, explain_no_batches
from training.geopair.negatives import LastHardest, Ranking, own_ranking, random_ranking, shared_ranking
from training.geopair.photo_table import Describe, DescribedRows, GeoPairError, Int64Array, PhotoTable, describe_needed
from training.geopair.positives import Neighbours, Positives, check_sessions, explain_no_pairs
from training.recipe_settings import GeoPairSettings


class _Purpose(IntEnum):
    """What random numbers are for: each has its own generator, so that a change of one choice leaves the others."""

    QUERIES = 0
    POSITIVES = 1
    NEGATIVES = 2


class GeoPairs:
    """The pairs of a photo table, epoch by epoch.

    Differs from VG-SSL where our specification says so (section 9): the choice of positive is a switch, no two pairs
    of a batch show the same place, and no photo is twice in a batch. Queries are never repeated within an epoch: where
    fewer than `queries_per_epoch` have a positive, an epoch is all of these.

    Args:
        table: the photos, at least two.
        settings: the rules.
        queries_per_batch: pairs in a batch, mined negatives not counted.
        queries_per_epoch: sampled anew each epoch, at most.
        seed: of every random choice.
        min_queries: the fewest pairs that the objective can compare. Batches below this, or below half of
            `queries_per_batch`, are given up.
        equal_batches: give up every batch that is not full (several processes need equal ones).
        separate_negatives: negatives become pairs of the batch, so no other photo of it may show their place.

    Attributes:
        trainable_queries: (M,) int64 rows that have at least one positive, ascending.

    Raises:
        GeoPairError: ``too_few_references``, ``one_session``, ``no_pairs``, ``batch_too_small``.
    """

    def __init__(
        self,
        table: PhotoTable,
        settings: GeoPairSettings,
        *,
        queries_per_batch: int,
        queries_per_epoch: int,
        seed: int,
        min_queries: int = 2,
        equal_batches: bool = False,
        separate_negatives: bool = False,
    ) -> None:
        _check_counts(len(table), queries_per_batch, min_queries)
        self.table, self.settings = table, settings
        self._seed = seed
        self._queries_per_epoch = queries_per_epoch
        half = (queries_per_batch + 1) // 2
        never = settings.never_negative_radius_m
        self._rules = BatchRules(
            queries=queries_per_batch,
            least=queries_per_batch if equal_batches else max(min_queries, half),
            min_queries=min_queries,
            separation_m=never if settings.batch_separation_m is None else settings.batch_separation_m,
            negatives=0 if settings.negative_mining == "none" else settings.negatives_per_query,
            never_negative_m=never,
            separate_negatives=separate_negatives,
        )
        self._positives = Positives(table, settings, Neighbours(table.points))
        check_sessions(self._positives)
        self.trainable_queries = self._positives.rows_with_any()
        if not len(self.trainable_queries):
            raise explain_no_pairs(self._positives)
        self._hardest = LastHardest(np.empty(0, np.int64), np.empty((0, settings.negatives_per_query), np.int64))

    @property
    def needs_descriptors(self) -> bool:
        """Whether composing an epoch needs descriptors by the current net."""
        return self.settings.positive != "random" or self.settings.negative_mining in ("partial", "full")

    def compose_epoch(self, epoch: int, describe: Describe | None = None) -> EpochBatches:
        """Compose an epoch; the same for the same table, settings, seed, epoch, descriptors and state.

        Args:
            epoch: from 0.
            describe: called at most once, with every row that is needed; may be None unless `needs_descriptors`.

        Raises:
            GeoPairError: ``no_batches``, ``no_negatives``, ``bad_descriptors``.
            ValueError: descriptors are needed and `describe` is None.
        """
        queries = self._sample_queries(epoch)
        sample = self._shared_sample(epoch)
        described = self._describe(queries, sample, epoch, describe) if self.needs_descriptors else None
        pairs = np.stack([queries, self._choose_positives(queries, epoch, described)], axis=1)
        ranking = self._ranking(epoch, sample, described)
        composition = compose_batches(pairs, self.table.points, self._rules, ranking)
        if not composition.batches:
            raise explain_no_batches(composition, len(queries), self._rules)
        if self.settings.negative_mining == "full":
            self._remember(composition)
        return EpochBatches(epoch, composition.batches, composition.dropped)

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """What the next epoch depends on besides its descriptors, for a checkpoint; nothing but for `full` mining."""
        if self.settings.negative_mining != "full":
            return {}
        return {"hardest_queries": self._hardest.queries, "hardest_negatives": self._hardest.negatives}

    def load_state_dict(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Take up the state that `state_dict` gave.

        Raises:
            KeyError: it is of another way of mining.
        """
        if self.settings.negative_mining == "full":
            self._hardest = LastHardest(
                np.asarray(state["hardest_queries"], np.int64), np.asarray(state["hardest_negatives"], np.int64)
            )

    def _random(self, epoch: int, purpose: _Purpose, *more: int) -> np.random.Generator:
        return np.random.default_rng([self._seed, epoch, int(purpose), *more])

    def _sample_queries(self, epoch: int) -> Int64Array:
        count = min(self._queries_per_epoch, len(self.trainable_queries))
        return self._random(epoch, _Purpose.QUERIES).choice(self.trainable_queries, count, replace=False)

    def _shared_sample(self, epoch: int) -> Int64Array:
        if self.settings.negative_mining != "partial":
            return np.empty(0, np.int64)
        count = min(self.settings.negative_sample, len(self.table))
        return np.sort(self._random(epoch, _Purpose.NEGATIVES).choice(len(self.table), count, replace=False))

    def _own_rows(self, query: int, epoch: int) -> Int64Array:
        """What `full` mining tries for a query: its own sample, and its last hardest."""
        count = min(self.settings.negative_sample, len(self.table))
        drawn = self._random(epoch, _Purpose.NEGATIVES, query).choice(len(self.table), count, replace=False)
        return np.unique(np.concatenate([drawn, self._hardest.of(query)]))

    def _describe(
        self, queries: Int64Array, sample: Int64Array, epoch: int, describe: Describe | None
    ) -> DescribedRows:
        if describe is None:
            raise ValueError("these settings need descriptors, but describe is None")
        needed = [queries, sample]
        if self.settings.positive != "random":
            needed.append(self._positives.rows_of(queries))
        if self.settings.negative_mining == "full":
            needed.append(self._all_own_rows(queries, epoch))
        return describe_needed(describe, needed)

    def _all_own_rows(self, queries: Int64Array, epoch: int) -> Int64Array:
        wanted = np.zeros(len(self.table), np.bool_)
        for query in queries.tolist():
            wanted[self._own_rows(query, epoch)] = True
        return np.flatnonzero(wanted)

    def _choose_positives(self, queries: Int64Array, epoch: int, described: DescribedRows | None) -> Int64Array:
        if self.settings.positive == "random":
            return self._positives.choose_random(queries, self._random(epoch, _Purpose.POSITIVES).random(len(queries)))
        assert described is not None
        return self._positives.choose_by_descriptor(queries, described, self.settings.positive)

    def _ranking(self, epoch: int, sample: Int64Array, described: DescribedRows | None) -> Ranking | None:
        mining = self.settings.negative_mining
        if mining == "none":
            return None
        if mining == "random":
            sampled = self.settings.negative_sample
            return random_ranking(
                len(self.table), sampled, lambda query: self._random(epoch, _Purpose.NEGATIVES, query)
            )
        assert described is not None
        if mining == "partial":
            return shared_ranking(sample, described)
        return own_ranking(lambda query: self._own_rows(query, epoch), described)

    def _remember(self, composition: Composition) -> None:
        mined = [(batch.queries, batch.negatives) for batch in composition.batches if batch.negatives is not None]
        queries, negatives = zip(*mined, strict=True)
        self._hardest = self._hardest.updated(np.concatenate(queries), np.concatenate(negatives))


def _check_counts(references: int, queries_per_batch: int, min_queries: int) -> None:
    if references < 2:
        raise GeoPairError(
            f"{counted(references, 'reference')} can make no pair",
            remedy="Give at least two photos of the same place, and more of others",
            code="too_few_references",
        )
    if queries_per_batch < min_queries:
        raise GeoPairError(
            f"a batch has room for {queries_per_batch} queries, but the objective compares at least {min_queries}",
            remedy="Raise training.pairs",
            code="batch_too_small",
        )
