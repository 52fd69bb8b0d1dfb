"""Pixels of any image file: reading, scale, tissue, pictures."""
