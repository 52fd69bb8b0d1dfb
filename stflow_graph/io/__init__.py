"""Readers that validate and writers that are atomic; importable without torch."""
