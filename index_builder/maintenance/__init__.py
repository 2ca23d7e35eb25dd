"""Looking after published place indexes: versions, differences, Parquet, and what is odd about their photos."""
