"""Spatial gene expression from H&E slides by flow matching on a graph of spots."""

__version__ = "0.1.0"

__all__ = ["__version__"]
