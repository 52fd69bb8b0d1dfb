"""The house plan: imports point down, and every package ships."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# a part may import parts of a lower rank, and itself
RANKS = {
    "api": 7,
    "model": 6,
    "prepare": 5,
    "tissue_grid": 5,
    "cut_patches": 3,
    "split": 5,
    "choose_genes": 4,
    "embed": 5,
    "train": 5,
    "sample": 5,
    "evaluate": 5,
    "report": 5,
    "export": 5,
    "compat": 5,
    "cut_slide": 4,
    "probe": 5,
    "download": 5,
    "fit_fold": 4,
    "fit": 3,
    "fit_flow": 3,
    "fit_ridge": 3,
    "predict": 3,
    "stream": 4,
    "checkpoint": 3,
    "model_card": 2,
    "build": 2,
    "scores": 3,
    "charts": 1,
    "tracking": 1,
    "baselines": 2,
    "gnn_baseline": 2,
    "ridge": 1,
    "calibration": 1,
    "metrics": 1,
    "hest_results": 1,
    "encoders": 1,
    "graph": 1,
    "nn": 1,
    "flow": 1,
    "data": 1,
    "io": 1,
    "config": 0,
    "resolve": 0,
    "errors": 0,
}
# siblings and stages that may know each other all the same
ALLOWED = {
    ("evaluate", "report"),
    ("probe", "embed"),
    ("hest_results", "metrics"),
    ("data", "io"),
    ("data", "encoders"),
    ("encoders", "io"),
    ("baselines", "gnn_baseline"),
    ("ridge", "data"),
    ("ridge", "metrics"),
    ("checkpoint", "predict"),
    ("config", "io"),
    ("calibration", "metrics"),
    ("fit", "predict"),
    ("nn", "graph"),
    ("nn", "io"),
    ("config", "errors"),
    ("resolve", "errors"),
}
FILES = sorted((ROOT / "stflow_graph").rglob("*.py"))


def part_of(module: str) -> str | None:
    names = module.split(".")
    return names[1] if names[0] == "stflow_graph" and len(names) > 1 else None


def imports(path: Path) -> set[str]:
    """Return the parts of the package that a file imports, other than for types only."""
    found = set()
    pending = list(ast.parse(path.read_text()).body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            modules = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        else:
            modules = []
        found |= {part for module in modules if (part := part_of(module)) in RANKS}
        pending += list(ast.iter_child_nodes(node))
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path):
    relative = path.relative_to(ROOT / "stflow_graph")
    part = relative.parts[0].removesuffix(".py")
    if part == "__init__":
        return
    assert part in RANKS, f"{part} has no rank: say where it stands"
    for imported in imports(path) - {part}:
        assert RANKS[imported] < RANKS[part] or (part, imported) in ALLOWED, f"imports {imported}"


def test_every_package_ships():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    packages = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for path in ROOT.glob("stflow_graph/**/__init__.py")
    }
    assert packages | {"stflow_graph_cli"} == set(settings["packages"])


def test_every_module_lives_in_a_package():
    for path in FILES:
        assert (path.parent / "__init__.py").exists(), path
