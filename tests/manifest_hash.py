"""The hash file of a manifest that a test has edited on purpose, so that its content is what is refused."""

import hashlib
from pathlib import Path


def write_manifest_hash(manifest: Path) -> None:
    """Write the manifest's SHA-256 beside it, as `Manifest.write` does."""
    digest = hashlib.sha256(manifest.read_bytes()).hexdigest()
    (manifest.parent / "manifest.sha256").write_text(f"{digest}\n")
