"""Who is pushing a version."""

import os
import socket
from datetime import UTC, datetime, timedelta
from typing import Final

from pydantic import BaseModel, ConfigDict, ValidationError

from retrieval.stores.milvus.records import MilvusRecords

CLAIM_NAME: Final = "claim.json"

# Renewed far more often than that.
_GOOD_FOR: Final = timedelta(minutes=5)


class Claim(BaseModel):
    """A process that is pushing.

    Attributes:
        host, process: which.
        at: when it last said so.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str
    process: int
    at: datetime

    def holds(self) -> bool:
        """Whether it is to be respected: its process lives, as far as can be told from here."""
        if datetime.now(UTC) - self.at > _GOOD_FOR:
            return False
        if self.host != socket.gethostname():
            return True
        if self.process == os.getpid():
            return False
        try:
            os.kill(self.process, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        return True


def read_claim(records: MilvusRecords, collection: str) -> Claim | None:
    """The claim on a version, or None where nobody has one that can be read.

    Raises:
        StoreUnavailableError: Milvus cannot be asked.
    """
    data = records.read(collection, CLAIM_NAME)
    if data is None:
        return None
    try:
        return Claim.model_validate_json(data)
    except ValidationError:
        return None
