"""Readers of reference databases: one spec string opens any of them."""
