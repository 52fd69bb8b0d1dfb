"""The fixtures of all tests of commands."""

from command_line import cli

__all__ = ["cli"]
