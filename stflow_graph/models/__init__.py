"""Names and weights to objects and back: networks, checkpoints, model cards."""
