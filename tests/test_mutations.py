from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))
mutants = pytest.importorskip("mutants")
mutations = pytest.importorskip("mutations")

RETURNED = "return max(low, x.bit_length(), key=abs), 2 ** x[1:]"
CODE = '''"""Texts stay: 3 < 4."""
from math import hypot
Rows = int | None

def clip(x: int | None, low=0, *, high=9):
    """Return x; 5 is no code."""
    if not x:
        raise ValueError(f"x must be > {low + 1}")
    logger.info("%d", 1 + 1)
    seen[0] = hypot(x, high)
    return max(low, x.bit_length(), key=abs), 2 ** x[1:]

def __repr__(self):
    return 1 + 1
'''


def changes() -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for mutant in mutants.mutants_of(CODE.encode(), "stflow_graph/flow/clip.py"):
        changed = mutant.apply(CODE.encode()).decode().splitlines()
        (line,) = (b for a, b in zip(CODE.splitlines(), changed, strict=True) if a != b)
        found.setdefault(mutant.operator, set()).add(line.strip())
    return found


def test_one_small_fault_is_put_into_code_and_none_into_texts_and_types():
    biggest, returned = "max(low, x.bit_length(), key=abs)", RETURNED
    expected = {
        "constant": {
            "def clip(x: int | None, low=(1), *, high=9):",
            "def clip(x: int | None, low=0, *, high=(10)):",
            "seen[(1)] = hypot(x, high)",
            returned.replace("2 **", "(3) **"),
            returned.replace("[1:]", "[(2):]"),
        },
        "negated condition": {"if (not (not x)):"},
        "sign removed": {"if (x):"},
        "statement removed": {"pass"},
        "swapped": {
            "seen[0] = (hypot(high, x))",
            returned.replace(biggest, "(max(x.bit_length(), low, key=abs))"),
            "return ((2 ** x[1:], max(low, x.bit_length(), key=abs)))",
        },
        "keyword removed": {returned.replace(biggest, "(max(low, x.bit_length()))")},
        "call removed": {returned.replace("x.bit_length()", "(x)")},
        "min or max": {returned.replace("max", "(min)")},
        "arithmetic": {returned.replace("2 ** x[1:]", "(2 * x[1:])")},
        "operand removed": {returned.replace("2 ** x[1:]", "(2)")},
        "slice": {returned.replace("x[1:]", "(x[:])")},
    }
    found = changes()
    for operator in expected:
        assert found[operator] == expected[operator], operator
    assert found.keys() == expected.keys()


@pytest.mark.slow
def test_mutants_are_tested_on_a_copy(tmp_path, monkeypatch):
    monkeypatch.setattr(mutations, "MIN_SECONDS", 1.0)
    module, test = tmp_path / "stflow_graph/flow/clip.py", tmp_path / "tests/flow/test_clip.py"
    for path in (module, test):
        path.parent.mkdir(parents=True)
        (path.parent / "__init__.py").touch()
    module.write_text("def clip(x):\n    while x > 9:\n        x -= 1\n    return x\n")
    code = "import sys\nsys.path.insert(0, 'stflow_graph/flow')\nfrom clip import clip\n"
    test.write_text(code + "\ndef test_clip():\n    assert clip(11) == 9\n")
    every = mutants.mutants_of(module.read_bytes(), "stflow_graph/flow/clip.py")
    drawn = [mutant for mutant in every if mutant.after in ("(10)", "(2)", "x += 1")]
    before = module.read_bytes()
    lines: list[str] = []
    mutations.run_all(drawn, tmp_path, 2, lines.append)
    outcomes = {mutant.after: mutant.outcome for mutant in drawn}
    assert outcomes == {
        "(10)": "killed",
        "(2)": "survived",  # 11 less 2 is 9 as well
        "x += 1": "timeout",
    }
    assert {m.killer for m in drawn if m.outcome == "killed"} == {
        "tests/flow/test_clip.py::test_clip"
    }
    assert module.read_bytes() == before
    assert len(lines) == len(drawn) + 1
    test.write_text(code + "\ndef test_clip():\n    assert clip(11) == 8\n")
    with pytest.raises(RuntimeError, match="tests of flow fail without a change: tests/flow/test"):
        mutations.run_all(drawn, tmp_path, 1, lines.append)
