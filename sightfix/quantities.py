"""Quantities as people write them: 64G, 50M."""

import re
from typing import Final

from retrieval.errors import ParameterError

_PATTERN: Final = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([kKMGTB]?)(i?)[bB]?\s*")
_POWERS: Final = {"": 0, "k": 1, "K": 1, "M": 2, "G": 3, "B": 3, "T": 4}


def parse_bytes(text: str) -> int:
    """Bytes of a text such as ``16G``, ``512M``, ``1.5TB`` (powers of 1000) or ``16GiB`` (of 1024).

    Raises:
        ParameterError: it is none.
    """
    return _parse(text, "a size", "16G")


def parse_count(text: str) -> int:
    """A number such as ``50M``, ``1.2B`` or ``300000``.

    Raises:
        ParameterError: it is none, or none at all.
    """
    count = _parse(text, "a number", "50M")
    if count < 1:
        raise ParameterError(f"{text!r} is not at least 1", remedy="Write it like 50M")
    return count


def _parse(text: str, what: str, example: str) -> int:
    match = _PATTERN.fullmatch(text)
    if match is None:
        raise ParameterError(f"{text!r} is not {what}", remedy=f"Write it like {example}")
    number, prefix, binary = match.groups()
    return round(float(number) * float((1024 if binary else 1000) ** _POWERS[prefix]))
