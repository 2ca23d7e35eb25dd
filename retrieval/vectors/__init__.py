"""The reference descriptors of a place index: stored once, searched exactly or through a faster first look."""
