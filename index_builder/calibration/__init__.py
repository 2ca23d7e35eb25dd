"""Confidence and NO_MATCH of a place index: fitted to its own references, or to photos like its later queries."""
