"""Place indexes in Milvus, for what no longer fits one machine. Needs the extra `milvus`."""
