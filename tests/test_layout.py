"""The house plan: imports point down, and every package ships."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# a room may import rooms of a lower rank, and itself; rooms of one rank do not know each other
RANKS = {
    "version": 0,
    "errors": 0,
    "resolve": 1,
    "stats": 1,
    "flow": 1,
    "graph": 1,
    "io": 1,
    "parallel": 1,
    "config": 2,
    "images": 2,
    "platforms": 3,
    "encoders": 3,
    "nn": 3,
    "data": 4,
    "simulation": 5,
    "models": 5,
    "inference": 6,
    "preparation": 6,
    "training": 7,
    "evaluation": 7,
    "summary": 7,
    "integrations": 7,
    "stages": 8,
    "api": 9,
}
MAX_ARROWS = 144
FILES = sorted((ROOT / "stflow_graph").rglob("*.py"))
OUTSIDE = sorted([*(ROOT / "cli").glob("*.py"), *(ROOT / "benchmarks").glob("*.py")])


def room_of(module: str) -> str | None:
    names = module.split(".")
    return names[1] if names[0] == "stflow_graph" and len(names) > 1 else None


def imported_modules(path: Path) -> set[str]:
    """Return what a file imports, other than for types only."""
    found: set[str] = set()
    pending = list(ast.parse(path.read_text()).body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        pending += list(ast.iter_child_nodes(node))
    return found


def imports(path: Path) -> set[str]:
    """Return the rooms of the package that a file imports, other than for types only."""
    return {room for module in imported_modules(path) if (room := room_of(module)) in RANKS}


def room_of_file(path: Path) -> str:
    relative = path.relative_to(ROOT)
    return relative.parts[0] if path in OUTSIDE else relative.parts[1].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path):
    room = room_of_file(path)
    if room == "__init__":
        return
    assert room in RANKS, f"{room} has no rank: decide where it stands"
    for imported in imports(path) - {room}:
        assert RANKS[imported] < RANKS[room], f"imports {imported}"


@pytest.mark.parametrize("path", sorted((ROOT / "stflow_graph/stages").glob("*.py")))
def test_stages_do_not_import_each_other(path):
    stages = [name for name in imported_modules(path) if name.startswith("stflow_graph.stages.")]
    assert not stages


def test_the_house_stays_small():
    arrows = {(room_of_file(path), other) for path in [*FILES, *OUTSIDE] for other in imports(path)}
    arrows = {(room, other) for room, other in arrows if room not in ("__init__", other)}
    assert len(arrows) <= MAX_ARROWS, sorted(arrows)


def test_every_package_ships():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    packages = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for path in ROOT.glob("stflow_graph/**/__init__.py")
    }
    assert packages | {"stflow_graph_cli"} == set(settings["packages"])


def test_every_data_file_ships():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    package = ROOT / "stflow_graph"
    others = (path for path in package.rglob("*") if path.suffix not in (".py", ".pyc"))
    files = {path for path in others if path.is_file()}
    patterns = settings["package-data"]["stflow_graph"]
    assert files == {path for pattern in patterns for path in package.glob(pattern)}


def test_every_module_lives_in_a_package():
    for path in FILES:
        assert (path.parent / "__init__.py").exists(), path
