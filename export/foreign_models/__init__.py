"""Models that others trained: a file, what it says of itself, and the graph that is made of it."""
