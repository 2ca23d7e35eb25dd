"""Seal a manifest that a test has edited on purpose, so that what it says is what is refused."""

import hashlib
from pathlib import Path


def seal(manifest: Path) -> None:
    """Write the manifest's SHA-256 beside it, as `Manifest.write` does."""
    digest = hashlib.sha256(manifest.read_bytes()).hexdigest()
    (manifest.parent / "manifest.sha256").write_text(f"{digest}\n")
