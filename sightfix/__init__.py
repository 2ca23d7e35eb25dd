"""sightfix: where was this photo taken? The command line, the Python client and the demo town."""

from retrieval import __version__

__all__ = ["__version__"]
