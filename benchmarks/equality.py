"""How equal the two denoisers are with the same weights of the public form, on the same graph.

usage: python benchmarks/equality.py [--sizes 50 500 5000] [--checkpoint FILE] [--quick]

``TransformerDenoiser`` computes as published, ``GraphDenoiser(conv="stflow")`` without its
wide per-edge tensors. Prints, for outputs and for the gradients of a random linear form of them,
|graph - transformer| / |transformer|; gradients by the worst parameter, against the largest
gradient of its part. Weights are random unless a public checkpoint is given.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch_geometric.data import Batch, Data

from stflow_graph.graph import STFlowGraph
from stflow_graph.graph.stflow import stflow_edge_geometry
from stflow_graph.io.state_dict import read_state_dict
from stflow_graph.models.stflow_weights import graph_name, infer_sizes, load_stflow
from stflow_graph.nn.stflow.denoiser import TransformerDenoiser


def public_weights(channels: int = 1024, genes: int = 50) -> dict[str, Tensor]:
    """Return weights in the public form, of default size; norms and biases are random too."""
    torch.manual_seed(0)
    model = TransformerDenoiser(channels, genes)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            nn.init.normal_(parameter, std=0.3)
    for block in model.backbone.blks:  # inputs are pixels: keep the hidden layer from saturating
        block.attn.edge_trans.fc1.weight.data *= 1e-2
    return model.state_dict()


def slide(n: int, channels: int) -> Data:
    """Return a jittered array of n spots, 100 pixels a pitch."""
    generator = torch.Generator().manual_seed(n)
    side = int(n**0.5) + 1
    place = torch.arange(n)
    pos = torch.stack([place % side, place // side], 1).double()
    pos = 100 * (pos + 0.2 * torch.randn(n, 2, generator=generator).double())
    return STFlowGraph(8)(Data(x=torch.randn(n, channels, generator=generator), pos=pos))


def differences(weights: dict[str, Tensor], data: Batch, dtype: torch.dtype) -> tuple[float, float]:
    """Return the relative differences of outputs and gradients."""
    n, genes = data.num_nodes, infer_sizes(weights).n_genes
    generator = torch.Generator().manual_seed(n)
    y = torch.randn(n, genes, generator=generator).to(dtype)
    probe = torch.randn(n, genes, generator=generator).to(dtype)
    t = torch.rand(data.num_graphs, generator=generator).to(dtype)
    data = data.clone()
    data.x = data.x.to(dtype)
    data.edge_attr = stflow_edge_geometry(data.pos, data.edge_index).to(dtype)
    outputs, gradients = [], []
    for kind in ("transformer", "graph"):
        model = load_stflow(weights, kind).to(dtype)
        out = model(y, t, data)
        (out * probe).sum().backward()
        outputs.append(out.detach())
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    wanted, found = {graph_name(name): g for name, g in gradients[0].items()}, gradients[1]
    parts: dict[str, list[str]] = {}
    for name in wanted:
        parts.setdefault(".".join(name.split(".")[:2]), []).append(name)
    worst = max(
        float((found[name] - wanted[name]).norm() / max(wanted[other].norm() for other in names))
        for names in parts.values()
        for name in names
    )
    return float((outputs[1] - outputs[0]).norm() / outputs[0].norm()), worst


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[50, 500, 5000])
    parser.add_argument("--checkpoint", type=Path, help="a public checkpoint")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    weights = read_state_dict(options.checkpoint) if options.checkpoint else public_weights()
    channels = infer_sizes(weights).in_channels
    sizes = [50] if options.quick else options.sizes
    batches = {f"{n:,} spots": [n] for n in sizes} | {"slides of 50, 9 and 300": [50, 9, 300]}
    table = Table("slides", title="relative difference of graph and transformer denoiser")
    kinds = {"float32": torch.float32, "float64": torch.float64}
    for heading in (f"{part}, {kind}" for kind in kinds for part in ("outputs", "gradients")):
        table.add_column(heading, justify="right")
    for name, counts in batches.items():
        data = Batch.from_data_list([slide(n, channels) for n in counts])
        found = [value for dtype in kinds.values() for value in differences(weights, data, dtype)]
        table.add_row(name, *(f"{value:.1e}" for value in found))
    Console().print(table)


if __name__ == "__main__":
    main()
