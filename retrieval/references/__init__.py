"""Readers of reference databases: one spec string opens any of them."""

from retrieval.references.reference import Reference, ReferenceSource, SkippedPhoto
from retrieval.references.spec import READERS, open_references

__all__ = ["READERS", "Reference", "ReferenceSource", "SkippedPhoto", "open_references"]
