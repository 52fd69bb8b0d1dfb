"""Denoisers and their layers; they take plain arguments and work alone."""
