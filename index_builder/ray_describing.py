"""The engine of many machines: Ray Data hands parts to actors, each with a describer of its own.

Every machine sees the photos, the bundle and the folder of the parts under the same paths. What an actor writes is the
part that this machine would have written, so either engine goes on where the other stopped.
"""

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from index_builder.parts import Part, PartProgress, PartRecord, PartSettings, PartTask, describe_locally, read_part
from retrieval import errors
from retrieval.artefact import storage_errors
from retrieval.bundle import Precision, open_bundle
from retrieval.describer import Describer
from retrieval.engines.choosing import ProviderChoice
from retrieval.errors import DeviceError, MissingExtraError, ModelIndexMismatchError, SightfixError

# Of these providers each actor has a GPU to itself.
_ON_GPU: Final[frozenset[str]] = frozenset({"cuda", "tensorrt"})


@dataclass(frozen=True)
class _Recipe:
    """How an actor makes its describer, in what Ray can send."""

    bundle: Path
    fingerprint: str
    provider: ProviderChoice
    precision: Precision
    threads: int
    max_batch: int


def describe_on_ray(tasks: Iterable[PartTask], describer: Describer, settings: PartSettings) -> Iterator[PartProgress]:
    """Describe parts on a Ray cluster: the one of ``RAY_ADDRESS`` or of this process, else one on this machine.

    Args:
        tasks: the parts.
        describer: whose bundle, provider, precision and threads each actor has too.
        settings: how.

    Raises:
        MissingExtraError: Ray is not installed.
        SightfixError: what an actor met, such as another bundle on its machine.
        DeviceError: the cluster gave up.
    """
    try:
        import ray
        import ray.data
        from ray.exceptions import RayError
    except ImportError as error:
        raise MissingExtraError(
            f"describing on a cluster needs Ray ({error})", remedy="Run: pip install 'sightfix[ray]', or --engine local"
        ) from None
    recipe = _Recipe(
        describer.bundle.folder.resolve(),
        describer.bundle.fingerprint,
        describer.provider,
        describer.precision,
        describer.threads,
        describer.max_batch,
    )
    settings = replace(settings, folder=settings.folder.resolve())
    ours = not ray.is_initialized()
    if ours:
        # Its log belongs to the cluster's dashboard; here it would run over the progress.
        ray.init(address=os.environ.get("RAY_ADDRESS"), include_dashboard=False, log_to_driver=False)
    try:
        yield from _stream(ray, list(tasks), recipe, settings)
    except RayError as error:
        raise _cluster_failed(error) from error
    finally:
        if ours:
            ray.shutdown()


def _stream(ray: Any, tasks: list[PartTask], recipe: _Recipe, settings: PartSettings) -> Iterator[PartProgress]:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.verbose_progress = False
    rows = [{"part": json.dumps(asdict(task.part)), "photos": list(task.photos)} for task in tasks]
    gpus = 1 if recipe.provider in _ON_GPU else 0
    share = min(recipe.threads, int(_smallest_machine(ray)))
    actors = max(1, min(len(rows), int(ray.cluster_resources().get("GPU" if gpus else "CPU", 1) // (gpus or share))))
    # One block for each part: a part is what is lost with a machine, and what waits for the next.
    data = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        _PartActor,
        fn_constructor_args=(recipe, ray.put(settings)),
        batch_size=1,
        concurrency=(1, actors),
        num_cpus=share,
        num_gpus=gpus or None,
    )
    for row in data.iter_rows():
        if row["error"]:
            raise _error_from(row["error"])
        part, record = Part(**json.loads(row["part"])), PartRecord.model_validate_json(row["record"])
        yield PartProgress(len(record.offsets) + len(record.unreadable), record.unreadable)
        yield PartProgress(written=(part, record))


def _smallest_machine(ray: Any) -> float:
    cores = [node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"]]
    return max(1.0, min((count for count in cores if count >= 1.0), default=1.0))


class _PartActor:
    """Describes and writes parts on one machine, with one describer.

    Args:
        recipe: of the describer.
        settings: a reference to the settings in Ray's object store, which holds one copy for each machine.
    """

    def __init__(self, recipe: _Recipe, settings: Any) -> None:
        import ray

        self._settings: PartSettings = ray.get(settings)
        # Reported with the first part: Ray would try an actor that cannot be made again and again.
        self._error: SightfixError | None = None
        try:
            self._describer = _make_describer(recipe)
        except SightfixError as error:
            self._error = error

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        """Describe the parts of a batch.

        Args:
            batch: `part`, a `Part` as JSON, and `photos`, its paths.

        Returns:
            `part`, and `record` or `error`, as JSON; empty where there is none.
        """
        rows: dict[str, list[str]] = {"part": [], "record": [], "error": []}
        for part, photos in zip(batch["part"], batch["photos"], strict=True):
            record = error = ""
            try:
                record = self._describe(Part(**json.loads(part)), [str(path) for path in photos])
            except SightfixError as raised:
                error = _as_json(raised)
            for name, value in (("part", str(part)), ("record", record), ("error", error)):
                rows[name].append(value)
        return rows

    def _describe(self, part: Part, photos: list[str]) -> str:
        if self._error is not None:
            raise self._error
        settings = self._settings
        # Ray does a task again when its machine was lost after it wrote.
        record = read_part(settings.folder, part, self._describer.bundle.descriptor_dim, settings.base)
        if record is None:
            with storage_errors(settings.folder):
                for progress in describe_locally([PartTask(part, photos)], self._describer, settings):
                    if progress.written is not None:
                        record = progress.written[1]
        assert record is not None, "a part is written when all its photos were seen"
        return record.model_dump_json()


def _make_describer(recipe: _Recipe) -> Describer:
    bundle = open_bundle(recipe.bundle)
    if bundle.fingerprint != recipe.fingerprint:
        raise ModelIndexMismatchError(
            f"a machine of the cluster has another bundle ({bundle.fingerprint[:12]}) than this one "
            f"({recipe.fingerprint[:12]})",
            where=str(recipe.bundle),
            remedy="Put the bundle where all machines see the same",
        )
    return Describer(
        bundle, provider=recipe.provider, precision=recipe.precision, threads=recipe.threads, max_batch=recipe.max_batch
    )


def _as_json(error: SightfixError) -> str:
    words = {"what": error.what, "where": error.where, "remedy": error.remedy, "code": error.code}
    return json.dumps({"type": type(error).__name__, "words": words})


def _error_from(text: str) -> SightfixError:
    fields = json.loads(text)
    error: SightfixError = getattr(errors, fields["type"], SightfixError)(
        fields["words"].pop("what"), **fields["words"]
    )
    return error


def _cluster_failed(error: Exception) -> DeviceError:
    lines = str(error).strip().splitlines()
    return DeviceError(
        f"the Ray cluster gave up ({lines[-1].strip() if lines else type(error).__name__})",
        remedy="Look at Ray's logs; run the command again, and it goes on with what is described",
    )
