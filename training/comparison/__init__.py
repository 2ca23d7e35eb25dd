"""The comparison of objectives: several recipes and seeds, several evaluation sets, one table with intervals."""
