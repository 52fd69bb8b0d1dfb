"""The models of this package in other tools."""
