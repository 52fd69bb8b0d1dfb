"""Where Triton's kernels are tested: on a GPU, and under Triton's interpreter."""

import importlib.util
import os

import pytest

TRITON = importlib.util.find_spec("triton") is not None
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
_WHY = "needs TRITON_INTERPRET=1" if TRITON else "Triton is not installed"
on_cpu = pytest.param("cpu", marks=pytest.mark.skipif(not (TRITON and INTERPRETED), reason=_WHY))
on_gpu = pytest.param("cuda", marks=pytest.mark.gpu)
