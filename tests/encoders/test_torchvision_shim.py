from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import torch
from stflow_graph.encoders.torchvision_shim import import_timm, _libraries
assert import_timm() is import_timm()
import torchvision
loaded = torchvision.extension._has_ops()
assert loaded or len(_libraries) == 1, "the operators were not named"
assert not (loaded and _libraries), "a working torchvision was touched"
model = import_timm().create_model("resnet18", num_classes=0)
assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 512)
"""


def test_timm_imports_whether_or_not_torchvision_fits_torch():
    subprocess.run([sys.executable, "-c", SCRIPT], check=True)


def test_other_errors_of_torchvision_are_not_hidden(monkeypatch):
    from stflow_graph.encoders import torchvision_shim

    def broken(name: str) -> None:
        raise RuntimeError(f"{name} is broken")

    monkeypatch.setattr(torchvision_shim.importlib, "import_module", broken)
    with pytest.raises(RuntimeError, match="torchvision is broken"):
        torchvision_shim.import_timm()
