"""The program ``stflow-graph``: it answers signals before it imports what takes time."""

from __future__ import annotations

import os
import sys

from .signals import handle_signals


def main() -> None:
    """Run the command line and exit with the code of ``stflow_graph.errors``."""
    # before the options are spread, and again in main(), which tests and embedders call
    handle_signals(sys.argv[1:])
    # of a rank that is lost one line is enough; torch reads this when it is imported
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from .main import main as run

    run()


if __name__ == "__main__":
    main()
