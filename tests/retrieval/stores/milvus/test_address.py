"""Addresses of stores."""

import pytest

from retrieval.errors import ParameterError
from retrieval.index.milvus.connection import MilvusAddress


@pytest.mark.parametrize(
    ("text", "uri", "database"),
    [
        ("milvus://localhost", "http://localhost:19530", None),
        ("milvus://10.0.0.5:1234/robots", "http://10.0.0.5:1234", "robots"),
        ("milvus+tls://milvus.example.org", "https://milvus.example.org:19530", None),
        ("milvus://[::1]:19530", "http://[::1]:19530", None),
        ("milvus:///data/my%20places.db", "/data/my places.db", None),
    ],
)
def test_addresses_are_read(text: str, uri: str, database: str | None) -> None:
    assert MilvusAddress.parse(text) == MilvusAddress(uri, database, text)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("qdrant://localhost", "'qdrant://localhost' is not the address of a store"),
        ("milvus://", "names neither a host nor a file"),
        ("milvus+tls:///data/x.db", "names neither a host nor a file"),
        ("milvus://host:port", "cannot be read"),
        ("milvus://host/one/two", "names no database"),
    ],
)
def test_what_is_no_address_says_how_to_write_one(text: str, what: str) -> None:
    with pytest.raises(ParameterError, match=r"milvus:///path/to/file\.db") as refusal:
        MilvusAddress.parse(text)
    assert what in str(refusal.value)


@pytest.mark.parametrize(
    "text",
    [
        "milvus://root:secret@host",
        "milvus://root:secret@host:99999",
        "milvus://root:sec/secret@host",
        "milvus://host:19530?token=secret",
        "milvus://host#secret",
    ],
)
def test_a_password_in_an_address_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(ParameterError, match="MILVUS_TOKEN") as refusal:
        MilvusAddress.parse(text)
    assert "secret" not in str(refusal.value)


def test_a_file_is_told_from_a_server() -> None:
    assert MilvusAddress.parse("milvus:///data/x.db").lite_file == "/data/x.db"
    assert MilvusAddress.parse("milvus://host").lite_file is None
