"""The vectors of a place index: exact search, approximate candidates, FAISS."""
