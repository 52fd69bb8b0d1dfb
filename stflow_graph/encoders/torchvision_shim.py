"""Import of timm beside a torchvision whose compiled extension does not match torch.

PyPI's torchvision wheels are linked against CUDA. Beside a CPU build of torch their extension does
not load, and ``import torchvision`` (hence ``import timm``) fails on the missing operators ``nms``
and ``qnms``, which no patch encoder uses. Declaring the two operators is enough.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

import torch

_OPERATORS = ("nms", "qnms")
_SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
# the operators exist as long as the library object that defines them
_libraries: list[torch.library.Library] = []


def import_timm() -> ModuleType:
    """Return the module timm, whether or not torchvision's extension loads.

    Raises:
        ImportError: timm or torchvision is not installed.
    """
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        _define_operators()
        # the failed import leaves submodules behind that count as imported
        for name in [n for n in sys.modules if n.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        importlib.import_module("torchvision")
    return importlib.import_module("timm")


def _define_operators() -> None:
    if _libraries:
        return
    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in _OPERATORS:
        library.define(operator + _SIGNATURE)
    _libraries.append(library)
