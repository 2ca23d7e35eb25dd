"""Place indexes in a Milvus."""
