"""Measurements: each module prints ratios taken in one run; RESULTS.md records them with machine and date."""
