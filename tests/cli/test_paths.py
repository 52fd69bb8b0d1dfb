"""A path that is not there is reported before torch is imported, which takes seconds."""

from __future__ import annotations

import json
import subprocess
import sys

# runs commands, and prints the code of each; an import of torch would be an error of Python
PROGRAM = """
import json, sys
sys.modules["torch"] = None
from stflow_graph_cli.main import main
for words in json.loads(sys.argv[1]):
    sys.argv = ["stflow-graph", *words]
    try:
        main()
    except SystemExit as end:
        print(end.code, flush=True)
"""
COMMANDS = {
    "predict no.svs --model . --out o": "no.svs: file",
    "predict f --model no --out o": "no: checkpoint: found none",
    "predict f --model . --out f": "f: output: found a file",
    "predict f --model . --out o --spots no.csv": "no.csv: file",
    "train --source-dataroot no --embed-dataroot . --out o": "no: root: found no folder",
    "train --source-dataroot . --embed-dataroot no --out o": "no: root: found no folder",
    "train --source-dataroot . --embed-dataroot . --out f": "f: output",
    "train --source-dataroot . --embed-dataroot . --from no --out o": "no: checkpoint",
    "train --config no.toml --out o": "no.toml: file",
    "sample no f --out o": "no: checkpoint",
    "sample . no.h5 --out o": "no.h5: file",
    "sample . f --out o --observed no.h5ad": "no.h5ad: file",
    "eval no.h5ad --truth f --out o": "no.h5ad: file",
    "eval f --truth no.h5ad --out o": "no.h5ad: file",
    "embed --source-dataroot no --embed-dataroot o": "no: root",
    "embed --image no.svs --out o.h5": "no.svs: file",
    "embed no.h5 --out o": "no.h5: file",
    "embed f --out o --weights no.pth": "no.pth: file",
    "summarise no.h5ad --out o": "no.h5ad: file",
    "summarise f --out o --patients no.csv": "no.csv: file",
    "export no.h5ad --to o.csv": "no.h5ad: file",
    "export f --to f/o.csv": "f/o.csv: output",
}


def test_paths_are_checked_before_libraries_are_imported(tmp_path):
    (tmp_path / "f").touch()
    words = json.dumps([command.split() for command in COMMANDS])
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.split() == ["3"] * len(COMMANDS)
    for line, (command, message) in zip(run.stderr.splitlines(), COMMANDS.items(), strict=True):
        assert message in line, (command, line)
    assert [path.name for path in tmp_path.iterdir()] == ["f"]
