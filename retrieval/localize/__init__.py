"""From a photo to its matches, its position fix and how far to trust it."""
