"""How indexes and versions are called in Milvus, where names hold letters, digits and underscores only.

An index's alias is ``sightfix__<index>`` and a version's collection ``sightfix__<index>__<version>``; every other
character than a letter or digit is written ``_`` and two hexadecimal digits, so that two underscores only separate.
"""

import re
from typing import Final

RECORDS_NAME: Final = "sightfix_versions"

_PREFIX: Final = "sightfix"
_ESCAPED: Final = re.compile(r"_([0-9a-f]{2})")
_PLAIN: Final = re.compile(r"[A-Za-z0-9]")


def alias_of(index: str) -> str:
    """The alias that names an index's current version."""
    return f"{_PREFIX}__{_escape(index)}"


def collection_of(index: str, version: str) -> str:
    """The collection of a version."""
    return f"{alias_of(index)}__{_escape(version)}"


def index_of(alias: str) -> str | None:
    """The index of an alias, or None where it is not one of ours."""
    parts = alias.split("__")
    return _unescape(parts[1]) if len(parts) == 2 and parts[0] == _PREFIX else None


def version_of(collection: str) -> tuple[str, str] | None:
    """Index and version of a collection, or None where it is not one of ours."""
    parts = collection.split("__")
    return (_unescape(parts[1]), _unescape(parts[2])) if len(parts) == 3 and parts[0] == _PREFIX else None


def _escape(text: str) -> str:
    return "".join(sign if _PLAIN.match(sign) else f"_{ord(sign):02x}" for sign in text)


def _unescape(text: str) -> str:
    return _ESCAPED.sub(lambda found: chr(int(found[1], 16)), text)
