"""Photos that a command was given, described."""

from rich.markup import escape

from index_builder.describing import DescribedReferences, DescribeSettings, describe_references
from retrieval.describer import Describer
from retrieval.errors import ReferenceDataError
from retrieval.references import open_references
from sightfix.console import console, progress_bar


def describe_photos(what: str, spec: str, describer: Describer, settings: DescribeSettings) -> DescribedReferences:
    """Describe all photos of a spec that have a position, with a progress bar; how many were left out is said.

    Args:
        what: is being done, for the bar.
        spec: of the photos.
        describer: that describes them.
        settings: how.

    Raises:
        ReferenceDataError: there is none, the source cannot be read, or too many photos are unreadable.
    """
    source = open_references(spec)
    with progress_bar(what, len(source)) as advance:
        described = describe_references(source, describer, settings, advance)
    if not described.references:
        raise ReferenceDataError("there is no photo with a position", where=spec, remedy="Check folder and filters")
    left_out = len(source.skipped) + len(described.unreadable)
    if left_out:
        console.print(
            f"[yellow]left out[/] {left_out} photos of {escape(spec)}; see: sightfix inspect {escape(spec)}",
            soft_wrap=True,
        )
    return described
