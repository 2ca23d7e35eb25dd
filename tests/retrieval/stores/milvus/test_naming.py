"""Names in Milvus hold letters, digits and underscores; ours hold more."""

import re

from hypothesis import given
from hypothesis import strategies as st

from retrieval.index.milvus.connection import RECORDS_NAME, alias_of, collection_of, version_of

names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True)


@given(names, names)
def test_names_come_back_and_are_allowed(index: str, version: str) -> None:
    alias, collection = alias_of(index), collection_of(index, version)
    assert re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", collection)
    assert version_of(collection) == (index, version)
    assert version_of(alias) is None


def test_what_others_keep_there_is_not_ours() -> None:
    for name in ("photos", "sightfix", RECORDS_NAME, "other__town", "other__town__1"):
        assert version_of(name) is None
