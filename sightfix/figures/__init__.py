"""Plots and pages for people."""
