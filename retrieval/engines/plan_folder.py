"""TensorRT plans on the disk: `model.plan` and a manifest that says what it was built from, for and with.

A plan is kept in the engine cache, or inside a bundle under `engines/`. It is code for one GPU architecture and one
TensorRT: nothing that its manifest does not vouch for, and nothing made for another model or machine, is ever opened.
"""

from pathlib import Path
from typing import Final, Literal

from pydantic import Field

from retrieval.artefact import MANIFEST_NAME, Manifest, verify_files
from retrieval.bundle import Bundle, Precision
from retrieval.engines.batch_profiles import BatchProfiles
from retrieval.engines.engine_cache import EngineKey
from retrieval.engines.tensorrt_machine import TensorRtMachine, tensorrt_machine
from retrieval.errors import EngineError, ProviderUnavailableError

PLAN_NAME: Final = "model.plan"
BUILT_BY: Final = "tensorrt"
REBUILD: Final = "Build it again: sightfix bundle engine"

_ENGINES_FOLDER: Final = "engines"


class PlanManifest(Manifest):
    """The manifest of a plan.

    Attributes:
        graph_sha256: of the ONNX file it was built from.
        tensorrt_version, architecture: what it runs on, and on nothing else.
        device_name: the GPU it was built on.
        precision: of the graph.
        profiles: batch sizes, as `str(BatchProfiles)`.
        build_seconds: how long the build took.
    """

    kind: Literal["engine"] = "engine"
    format_version: Literal[1] = 1
    graph_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    tensorrt_version: str
    architecture: str
    device_name: str
    precision: Precision
    profiles: str
    build_seconds: float = Field(ge=0)


def plan_key(bundle: Bundle, precision: Precision, profiles: BatchProfiles, machine: TensorRtMachine) -> EngineKey:
    """What a plan for this model and machine depends on.

    Raises:
        BundleError: the bundle has no graph of that precision.
    """
    graph = bundle.manifest.files[bundle.graph_path(precision).name]
    return EngineKey(
        graph_sha256=graph.sha256,
        tensorrt_version=machine.tensorrt_version,
        architecture=machine.architecture,
        precision=precision,
        profiles=profiles,
        built_by=BUILT_BY,
    )


def folder_in_cache(cache: Path, key: EngineKey) -> Path:
    """Where a plan lies in the engine cache."""
    return cache / key.folder


def folder_in_bundle(bundle: Bundle, key: EngineKey) -> Path:
    """Where a plan lies inside its bundle."""
    return bundle.folder / _ENGINES_FOLDER / key.folder.name


def find_plan(bundle: Bundle, precision: Precision, profiles: BatchProfiles, cache: Path) -> Path | None:
    """The plan built for this machine and this graph, precision and profiles.

    Args:
        bundle: whose graph.
        precision: of the graph.
        profiles: batch sizes it must have been built for.
        cache: the engine cache; it is looked up first, then the bundle's own `engines/`.

    Returns:
        the path of a `model.plan`, or None when there is none or no TensorRT or GPU. `open_plan` checks what is in it.

    Raises:
        BundleError: the bundle has no graph of that precision.
    """
    try:
        machine = tensorrt_machine()
    except ProviderUnavailableError:
        return None
    key = plan_key(bundle, precision, profiles, machine)
    for folder in (folder_in_cache(cache, key), folder_in_bundle(bundle, key)):
        if (folder / MANIFEST_NAME).is_file():
            return folder / PLAN_NAME
    return None


def check_plan(path: Path, key: EngineKey) -> PlanManifest:
    """Check that a plan is whole and was built for this model and machine.

    Args:
        path: of the `model.plan`, with its manifest beside it.
        key: what it has to be.

    Raises:
        EngineError: a damaged, truncated or missing file, or a plan for something else; it names file and remedy.
    """
    folder = path.parent
    manifest = PlanManifest.read(folder, EngineError)
    if path.name not in manifest.files:
        raise EngineError("the manifest does not name this file", where=str(path), remedy=REBUILD)
    wanted = {
        "graph_sha256": ("another graph", key.graph_sha256),
        "tensorrt_version": (f"TensorRT {manifest.tensorrt_version}, not {key.tensorrt_version}", key.tensorrt_version),
        "architecture": (f"the GPU architecture {manifest.architecture}, not {key.architecture}", key.architecture),
        "precision": (f"{manifest.precision}, not {key.precision}", key.precision),
        "profiles": (f"the batch sizes {manifest.profiles}, not {key.profiles}", str(key.profiles)),
    }
    for field, (built_for, value) in wanted.items():
        if getattr(manifest, field) != value:
            raise EngineError(f"the plan was built for {built_for}", where=str(path), remedy=REBUILD)
    verify_files(folder, manifest.files, error_type=EngineError)
    return manifest
