"""The training loop of a network, of a fold's members, of their flows and ridges."""
