"""The model card of a bundle, generated from what its manifest states (Mitchell et al., "Model Cards for Model
Reporting", FAT* 2019)."""

from collections.abc import Mapping, Sequence

from retrieval.bundle import ParityReport, Precision, PrecisionReport, Provenance, RecallChange, WhiteningReport
from retrieval.images import Preprocessing

_WORDS = {None: "none: never trained for places", "simclr": "SimCLR", "mocov2": "MoCo v2", "byol": "BYOL"}


def model_card(
    *,
    name: str,
    provenance: Provenance,
    preprocessing: Preprocessing,
    camera_model_input: Preprocessing | None,
    descriptor_dim: int,
    weight_storage: str,
    licence: str,
    parity: ParityReport | None,
    whitening: WhiteningReport | None,
    precisions: Mapping[Precision, PrecisionReport],
) -> str:
    """The card as Markdown; arguments are those of the bundle's manifest."""
    rows = [
        ("backbone", f"`{provenance.backbone}`"),
        ("aggregation", f"{provenance.aggregation}, then L2 norm"),
        ("descriptor", f"{descriptor_dim} numbers, unit length"),
        ("objective", _WORDS.get(provenance.objective, provenance.objective or "")),
        ("weights", f"{provenance.weights} ({provenance.weights_licence})"),
        ("trained on", provenance.training_data),
        ("trained for places", "no" if provenance.objective is None else "yes"),
        ("input", _input(preprocessing, camera_model_input)),
        ("file", "weights stored as fp16, computed in fp32" if weight_storage == "fp16" else "fp32"),
        ("licence", licence),
    ]
    if parity is not None:
        rows.append((f"worst cosine to {parity.reference}", f"{parity.min_cosine:.7f} on {parity.images} images"))
    parts = [
        f"# {name}",
        "Turns a photo into a descriptor by which photos of the same place are found. Made with sightfix.",
        _table(("", ""), rows),
        *_recalls(provenance),
        *_whitening(whitening),
        *_precisions(precisions),
        "## Intended use\n\n" + _intended_use(provenance),
        "## Limits\n\n" + _limits(provenance),
        f"## Licence\n\n{licence}. The licence of the photos it was trained or fitted on may bind you too.",
    ]
    return "\n\n".join(parts) + "\n"


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _input(preprocessing: Preprocessing, camera_model_input: Preprocessing | None) -> str:
    size = f"{preprocessing.height} × {preprocessing.width} RGB"
    rule = f"{preprocessing.fit}, {preprocessing.filter} antialiased"
    if camera_model_input is None:
        return f"{size}, {rule}"
    inner = f"{camera_model_input.height} × {camera_model_input.width}"
    return f"{size}: whole camera frames, which the graph resizes to {inner} ({rule})"


def _recalls(provenance: Provenance) -> list[str]:
    if not provenance.recalls:
        return []
    rows = [(what, f"{100 * recall:.1f} %") for what, recall in provenance.recalls.items()]
    return [
        "## Recall while it was trained\n\n" + _table(("validation", "recall"), rows),
        "Of the validation photos by which the checkpoint was chosen, and so optimistic.",
    ]


def _whitening(whitening: WhiteningReport | None) -> list[str]:
    if whitening is None:
        return []
    text = (
        f"## Whitening\n\nFrom {whitening.from_dim} to {whitening.dim} numbers, with power {whitening.power:g} of the "
        f"singular values, fitted on {whitening.photos} photos of {whitening.fitted_on}. "
        f"{100 * whitening.explained:.0f} % of their variance is kept. Elsewhere it may help less, or hurt."
    )
    return [text, *_recall_table(whitening.recall)]


def _precisions(reports: Mapping[Precision, PrecisionReport]) -> list[str]:
    if not reports:
        return []
    rows = [
        (
            precision,
            f"{report.min_cosine:.5f}",
            f"{report.mean_cosine:.5f}",
            str(report.images),
            "accepted below the gate" if report.accepted_loss else "passed",
        )
        for precision, report in reports.items()
    ]
    head = ("precision", "worst cosine to fp32", "mean", "photos", "gate")
    changes = [table for precision, report in reports.items() for table in _recall_table(report.recall, precision)]
    return ["## Precisions\n\n" + _table(head, rows), *changes]


def _recall_table(changes: tuple[RecallChange, ...], precision: str | None = None) -> list[str]:
    if not changes:
        return []
    rows = [
        (
            f"{change.evaluation_set}, {change.radius_m:g} m",
            str(change.queries),
            f"{100 * change.chance:.1f} %",
            f"{100 * change.before:.1f} %",
            f"{100 * change.after:.1f} %",
            f"{100 * change.change:+.1f} [{100 * change.low:+.1f}, {100 * change.high:+.1f}]",
        )
        for change in changes
    ]
    head = ("evaluation set", "queries", "chance", "before", f"{precision or 'after'}", "change, 95 % interval")
    return ["Recall@1:\n\n" + _table(head, rows)]


def _intended_use(provenance: Provenance) -> str:
    if provenance.objective is None:
        return (
            "To try sightfix, as a baseline, and where photos resemble each other in viewpoint and light. A model "
            "trained on places bridges seasons, night and changed viewpoints better."
        )
    return (
        "To find photos of the same place, in areas that look like those it was trained on. Measure it on photos of "
        "your own before you rely on it: `sightfix evaluate`."
    )


def _limits(provenance: Provenance) -> str:
    imagenet = (
        " The photos ImageNet was built from carry the biases of the web: places outside North America and Europe are "
        "rarer."
        if "imagenet" in f"{provenance.training_data} {provenance.weights}".lower()
        else ""
    )
    return (
        "It was not made for opposite viewpoints of one spot, for maps or drawings, nor to tell that a photo shows a "
        "place that is not in the index: scores are not probabilities. It must not be the only source of position "
        "where an error could harm somebody." + imagenet
    )
