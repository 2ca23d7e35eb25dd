"""Typed Python clients of a sightfix server.

with SightfixClient("http://127.0.0.1:8080") as client:
    answer = client.localize(Path("photo.jpg"), top_k=5)
    print(answer.status, answer.fix)

A camera's frames over one gRPC stream: `sightfix.client.grpc_stream.FrameStream`, apart because it imports gRPC.
"""

from retrieval.geo import GeoPrior
from retrieval.localize.answer import LocalizeAnswer, Problem
from retrieval.tracking import Displacement, Distance, Speed
from service.jobs.model import AppendJobRequest, FullJobRequest, Job, JobFailurePage, JobPage, RemoveJobRequest
from service.tracking.model import TrackParameters
from sightfix.client.answers import BatchItem, Description, IndexListing, ServerInfo
from sightfix.client.asynchronous import AsyncSightfixClient
from sightfix.client.connection import DEFAULT_URL
from sightfix.client.errors import ProblemError
from sightfix.client.photos import Photo, encode_photo
from sightfix.client.retrying import RetryPolicy
from sightfix.client.synchronous import SightfixClient

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
