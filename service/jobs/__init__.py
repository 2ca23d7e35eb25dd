"""Batch re-indexing: jobs kept in SQLite, done by a process of its own, one at a time."""
