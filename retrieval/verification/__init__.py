"""Verification: the best matches of a photo are compared with it point by point."""
