"""A report of made-up numbers, as large as a real one: two evaluation sets, two radii, all methods."""

import numpy as np

from retrieval.evaluation import Bootstrap, Protocol
from retrieval.evaluation.eval_set import Truth
from tests.training.comparison.places_in_a_row import eval_set, row
from training.comparison.evaluation import EvaluationKey, EvaluationRecord
from training.comparison.report import METHOD_NAMES, ComparisonReport, Epochs
from training.comparison.report_building import ReportBuilder, RowRecords

PROTOCOL = Protocol(radii_m=(25.0, 10.0), recall_at=(1, 5, 10), grouping="place", bootstrap=Bootstrap(resamples=500))
QUERIES = 120


def made_up_report(backbones: tuple[str, ...] = ("tf_efficientnet_lite0",), seeds: int = 3) -> ComparisonReport:
    """All methods on each backbone; the further down the table, the luckier."""
    random = np.random.default_rng(0)
    metres = np.linspace(0, 2000, QUERIES)
    truths = {name: Truth.of(eval_set(metres, metres + 5, name), PROTOCOL) for name in ("cross-phone", "day-night")}
    rows = []
    for backbone in backbones:
        for number, method in enumerate(METHOD_NAMES):
            count = 1 if method == "untrained" else seeds
            records = {}
            for name, truth in truths.items():
                key = EvaluationKey.of("e", name, PROTOCOL)
                records[name] = []
                for _ in range(count):
                    lucky = 0.35 + 0.04 * number + 0.02 * random.standard_normal()
                    first = np.minimum(random.geometric(lucky, QUERIES) - 1, 10)
                    heat = tuple(float(share) for share in random.uniform(0.2, 0.5, 20))
                    records[name].append(
                        EvaluationRecord(
                            key=key,
                            ranked=10,
                            first_hit=(tuple(first.tolist()),) * 2,
                            heat_rows=tuple(truth.sample(20).tolist()),
                            heat_activation=heat,
                            heat_match=heat,
                        )
                    )
            label = method if method == "untrained" else f"{method.replace('_', '-')}-{backbone}"
            epochs = tuple(Epochs(0, None) if method == "untrained" else Epochs(4 + seed, 8) for seed in range(count))
            rows.append(RowRecords(row(label, method, backbone), count, tuple(range(count)), records, epochs))
    return ReportBuilder(truths, "triplet").build(rows, made_with=["sightfix 0, PyTorch 0; a machine"])
