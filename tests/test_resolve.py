from __future__ import annotations

import sys

import pytest

from stflow_graph.errors import BadConfig
from stflow_graph.resolve import code_file, resolve


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with modules of the user's."""
    files = {
        "parts_good.py": "import parts_neighbour\nLAYER = parts_neighbour.LAYER\n",
        "parts_neighbour.py": "LAYER = 'layer'\n",
        "parts_broken.py": "raise RuntimeError('broken')\n",
        "parts_impolite.py": "import sys\nsys.path.pop(0)\nLAYER = 1\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
        monkeypatch.delitem(sys.modules, name.removesuffix(".py"), raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


def test_a_file_in_the_working_directory_may_import_its_neighbours(folder):
    assert resolve("parts_good:LAYER") == "layer"
    assert resolve("collections:OrderedDict").__name__ == "OrderedDict"


def test_an_entry_of_the_users_own_search_path_stays_where_it_is(folder):
    sys.path.append(str(folder))
    before = list(sys.path)
    assert resolve("parts_good:LAYER") == "layer"
    assert sys.path == before


@pytest.mark.parametrize("module", ["parts_good", "parts_broken", "parts_impolite", "parts_absent"])
def test_the_search_path_is_restored(folder, module):
    before = list(sys.path)
    if module in ("parts_broken", "parts_absent"):
        with pytest.raises((RuntimeError, BadConfig)):
            resolve(f"{module}:LAYER")
    else:
        resolve(f"{module}:LAYER")
    assert sys.path == before


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("LAYER", r"'LAYER': expected 'module:Name'"),
        (":LAYER", r"expected 'module:Name'"),
        ("parts_good:", r"expected 'module:Name'"),
        ("parts_absent:LAYER", r"cannot import 'parts_absent': No module named 'parts_absent'"),
        ("parts_good:Other", r"'parts_good:Other': parts_good has LAYER, parts_neighbour"),
    ],
)
def test_wrong_names_are_refused(folder, name, message):
    with pytest.raises(BadConfig, match=message):
        resolve(name)


def test_the_file_of_a_module_is_found_without_running_it(folder):
    nested = folder / "outer/inner"
    nested.mkdir(parents=True)
    for file in (folder / "outer/__init__.py", nested / "__init__.py", nested / "part.py"):
        file.write_text("raise RuntimeError('imported')\n")
    before, modules = list(sys.path), set(sys.modules)
    assert code_file("parts_broken:A") == folder / "parts_broken.py"
    assert code_file("outer.inner.part:A") == nested / "part.py"
    assert code_file("os:kill").name == "os.py"
    for name in ("absent:A", "outer.absent:A", "..x:A", ":A", "", "/etc/passwd:A", "a\0b:A"):
        assert code_file(name) is None, name
    assert (sys.path, set(sys.modules)) == (before, modules)


def test_a_module_that_fails_and_one_that_is_not_there_say_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fails_when_imported.py").write_text("class A(nn.Module): pass\n")
    with pytest.raises(BadConfig, match="'fails_when_imported': NameError: name 'nn' is not"):
        resolve("fails_when_imported:A")
    with pytest.raises(BadConfig, match=rf"expected nowhere_at_all.py in {tmp_path}"):
        resolve("nowhere_at_all:A")
