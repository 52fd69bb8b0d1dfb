"""Slides, splits, genes and simulated cohorts."""
