"""Plain numpy: scores, calibration, ridge regression."""
