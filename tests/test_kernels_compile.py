"""Triton's kernels compile for GPUs that are not here, at every width."""

import importlib
import itertools

import pytest
from triton_runs import INTERPRETED, TRITON

from stflow_graph.nn.conv import fused_attention

pytestmark = pytest.mark.skipif(not TRITON or INTERPRETED, reason="needs Triton, not interpreting")
AMPERE, HOPPER = 80, 90
INT32 = {"n_spots", "n_each", "n_columns", "stride"}
INT32_POINTERS = {"senders", "edges", "receivers"}
# (kernel, widths C / H and D_e): usual, and the smallest and largest that are taken
FUSED = {
    "forward": ((32, 32), (3, 3), (128, 64)),
    "backward_by_receiver": ((32, 32), (3, 3), (64, 64)),
    "backward_by_sender": ((32, 32), (3, 3), (64, 64)),
}


@pytest.fixture(autouse=True)
def _fused_multiply_add(monkeypatch):
    """Triton 3.9 warns unless it is told; what it does by default, as releases before did."""
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")


def build(function, constants: dict, starts: str, dtype: str, capability: int, **options) -> None:
    """Compile a kernel."""
    triton = importlib.import_module("triton")
    target = importlib.import_module("triton.backends.compiler").GPUTarget
    source = importlib.import_module("triton.compiler").ASTSource
    types = {}
    for name in function.arg_names:
        if name in constants:
            types[name] = "constexpr"
        elif name in INT32 or name.startswith("stride_"):
            types[name] = "i32"
        elif name in INT32_POINTERS or name == "starts":
            types[name] = starts
        elif name == "sender" and starts == "*i64":
            types[name] = "*i64"
        else:
            types[name] = dtype
    code = source(function, types, constexprs=constants)
    triton.compile(code, target=target("cuda", capability, 32), options=options)


@pytest.mark.parametrize("width", [1, 2, 4, 8, 16, 32, 64, 128, 300])
@pytest.mark.parametrize(("dtype", "capability"), [("*fp32", HOPPER), ("*bf16", AMPERE)])
def test_the_sum_over_neighbours(width, dtype, capability):
    module = importlib.import_module("stflow_graph.graph.neighbor_sum_kernel")
    block_n, block_c = module.blocks(width)
    constants = {"BLOCK_N": block_n, "BLOCK_C": block_c}
    build(module._sum, constants, "*i64", dtype, capability, num_warps=1)


@pytest.mark.parametrize(
    ("kernel", "widths", "precision"),
    [
        (kernel, widths, precision)
        for kernel, cases in FUSED.items()
        for widths, precision in itertools.product(cases, ("tf32x3", "tf32"))
    ],
)
def test_the_attention(kernel, widths, precision):
    module = importlib.import_module("stflow_graph.nn.conv.fused_kernels")
    width, edge_width = widths
    block_d, block_e = (fused_attention.padded_width(each) for each in widths)
    constants = {
        "H": 4,
        "D": width,
        "D_E": edge_width,
        "HAS_WEIGHT": True,
        "BLOCK_K": fused_attention._BLOCK_K,
        "BLOCK_D": block_d,
        "BLOCK_E": block_e,
        "BLOCK_H": 4,
        "PRECISION": precision,
    }
    function = getattr(module, kernel)
    constants = {name: value for name, value in constants.items() if name in function.arg_names}
    n_warps = max(1, block_d * block_e // 2048)
    options = {"num_warps": n_warps, "num_stages": fused_attention._STAGES[kernel]}
    capability = HOPPER if precision == "tf32x3" else AMPERE
    build(function, constants, "*i32", "*fp32", capability, **options)
