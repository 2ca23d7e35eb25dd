"""HTTP in front of the localizer."""
