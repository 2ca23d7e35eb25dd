"""What it means to localize an image: images, bundles, descriptors, place indexes, the fix."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("sightfix")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"
