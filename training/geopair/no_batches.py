"""Why pairs make no batch, in words that say what to change."""

from training.geopair.batches import Composition
from training.geopair.errors import GeoPairError
from training.geopair.open_batch import BatchRules


def explain_no_batches(composition: Composition, pairs: int, rules: BatchRules) -> GeoPairError:
    """The error for an epoch without a batch.

    Args:
        composition: what was tried.
        pairs: how many there were.
        rules: what a batch had to keep to.
    """
    mined = f"{rules.negatives} mined negative{'' if rules.negatives == 1 else 's'}"
    if composition.without_negatives == pairs:
        return GeoPairError(
            f"none of {pairs} queries finds {mined} outside {rules.never_negative_m:g} m of it and of its positive: "
            "the area is too small",
            remedy="Add photos of other places, raise geopair.negative_sample, or lower "
            "geopair.never_negative_radius_m",
            code="no_negatives",
        )
    remedies = [f"geopair.batch_separation_m below {rules.separation_m:g}", "add photos of other places"]
    if composition.largest >= rules.min_queries:
        # Two views of each negative are pairs of the recipe too.
        each = 1 + (rules.negatives if rules.separate_negatives else 0)
        remedies.insert(0, f"training.pairs to at most {composition.largest * each}")
    negatives = f", each with {mined}," if rules.negatives else ""
    return GeoPairError(
        f"of {pairs} pairs no more than {composition.largest}{negatives} fit into one batch, further than "
        f"{rules.separation_m:g} m apart; a batch needs {rules.least}",
        remedy=f"Set {', or '.join(remedies)}",
        code="no_batches",
    )
