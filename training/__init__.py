"""Self-supervised training of place descriptors on GeoPairs (VG-SSL, WACV 2025)."""
