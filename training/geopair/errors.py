"""What can be wrong with photos that shall make pairs."""

from retrieval.errors import SightfixError


class GeoPairError(SightfixError):
    """Photos that make no pairs, or pairs that make no batch.

    Codes: ``mixed_positions``, ``too_few_references``, ``one_session``, ``no_pairs``, ``batch_too_small``,
    ``no_batches``, ``no_negatives``, ``bad_descriptors``.
    """

    default_code = "geopair"
