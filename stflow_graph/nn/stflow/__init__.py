"""The published model of STFlow and its parts, the baseline of every comparison."""
