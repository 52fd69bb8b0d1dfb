"""Predictions beside the truth: scores, baselines, tables, report."""
