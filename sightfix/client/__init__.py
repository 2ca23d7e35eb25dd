"""Typed Python clients of a sightfix server.

with SightfixClient("http://127.0.0.1:8080") as client:
    answer = client.localize(Path("photo.jpg"), top_k=5)
    print(answer.status, answer.fix)

A camera's frames over one gRPC stream: `sightfix.client.grpc_stream.FrameStream`, apart because it imports gRPC.

Each name is loaded when it is first used (PEP 562).
"""

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from retrieval.geo import GeoPrior
    from retrieval.tracking import Displacement, Distance, Speed
    from sightfix.client.answers import (
        AppendJobRequest,
        BatchItem,
        Description,
        FullJobRequest,
        IndexListing,
        Job,
        JobFailurePage,
        JobPage,
        LocalizeAnswer,
        Problem,
        RemoveJobRequest,
        ServerInfo,
        TrackParameters,
    )
    from sightfix.client.asynchronous import AsyncSightfixClient
    from sightfix.client.generated.synchronous import SightfixClient
    from sightfix.client.photos import Photo, encode_photo
    from sightfix.client.sending import DEFAULT_URL, ProblemError, RetryPolicy

__all__ = [
    "DEFAULT_URL",
    "AppendJobRequest",
    "AsyncSightfixClient",
    "BatchItem",
    "Description",
    "Displacement",
    "Distance",
    "FullJobRequest",
    "GeoPrior",
    "IndexListing",
    "Job",
    "JobFailurePage",
    "JobPage",
    "LocalizeAnswer",
    "Photo",
    "Problem",
    "ProblemError",
    "RemoveJobRequest",
    "RetryPolicy",
    "ServerInfo",
    "SightfixClient",
    "Speed",
    "TrackParameters",
    "encode_photo",
]

# The module of each name; of those that are not here it is `sightfix.client.answers`.
_MODULES: Final = {
    "AsyncSightfixClient": "sightfix.client.asynchronous",
    "DEFAULT_URL": "sightfix.client.sending",
    "Displacement": "retrieval.tracking",
    "Distance": "retrieval.tracking",
    "GeoPrior": "retrieval.geo",
    "Photo": "sightfix.client.photos",
    "ProblemError": "sightfix.client.sending",
    "RetryPolicy": "sightfix.client.sending",
    "SightfixClient": "sightfix.client.generated.synchronous",
    "Speed": "retrieval.tracking",
    "encode_photo": "sightfix.client.photos",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULES.get(name, "sightfix.client.answers")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
