"""Predictions of many slides as tables: genes, gene sets, domains, patients."""
