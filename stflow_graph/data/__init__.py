"""A data set and its slides in memory."""
