"""The server: HTTP in front of one describer and one place index."""
