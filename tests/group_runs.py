"""Training loops of several processes together: ``python -m group_runs OUT CASES``.

Each writes ``OUT/<rank>.pt``: of every case the weights, the history and the gradients.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import torch
from linear import configured
from looped import NO_DROPOUT, TRANSFORMER_NO_DROPOUT, Loop
from torch.optim.optimizer import register_optimizer_step_pre_hook

from stflow_graph.parallel.group import Group, make_groups
from stflow_graph.parallel.ranks import join


def run(folder: Path, kind: str, changes: dict[str, Any], group: Group | None) -> dict[str, Any]:
    """Train; return what can be compared."""
    off = TRANSFORMER_NO_DROPOUT if kind == "transformer" else NO_DROPOUT
    missing = changes.pop("missing", False)
    loop = Loop(configured(kind, **{**off, **changes}))
    if missing:  # a gene that one slide does not measure
        loop.learn[1].y[:, 2] = torch.nan
    gradients: list[torch.Tensor] = []

    def keep(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        parameters = optimizer.param_groups[0]["params"]
        there = [p.grad.flatten() for p in parameters if p.grad is not None]
        gradients.append(torch.cat(there).clone())

    hook = register_optimizer_step_pre_hook(keep)
    fitted = loop.fit(folder, group=group)
    hook.remove()
    history = [dataclasses.asdict(record) for record in fitted.history]
    return {"weights": fitted.weights, "history": history, "gradients": gradients}


def main() -> None:
    """Train with the other ranks."""
    folder, cases = Path(sys.argv[1]), json.loads(sys.argv[2])
    ranks = join()
    assert ranks is not None
    group = make_groups(ranks, ranks.size, torch.device("cpu"))
    found = {}
    for case, (kind, changes) in cases.items():
        (folder / case).mkdir(exist_ok=True)
        found[case] = run(folder / case, kind, changes, group)
    torch.save(found, folder / f"{ranks.rank}.pt")


if __name__ == "__main__":
    main()
