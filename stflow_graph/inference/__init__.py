"""A trained model on slides of any size."""
