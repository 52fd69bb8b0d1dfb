"""The program ``stflow-graph``: it answers signals before it imports what takes time."""

from __future__ import annotations

import sys

from .signals import handle_signals


def main() -> None:
    """Run the command line and exit with the code of ``stflow_graph.errors``."""
    # before the options are spread, and again in main(), which tests and embedders call
    handle_signals(sys.argv[1:])
    from .main import main as run

    run()


if __name__ == "__main__":
    main()
