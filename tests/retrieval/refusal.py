"""What every error test states: the whole text that a user reads, and the code that a program reads."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from retrieval.errors import SightfixError


@contextmanager
def refused(error_type: type[SightfixError], text: str, code: str) -> Iterator[None]:
    """The block raises exactly this error."""
    with pytest.raises(error_type) as caught:
        yield
    assert str(caught.value) == text
    assert caught.value.code == code
    assert type(caught.value) is error_type
