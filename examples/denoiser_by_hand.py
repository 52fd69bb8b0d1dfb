"""A slide, its graph, a denoiser, a prior and a sampler, put together by hand."""

import sys

import torch

from stflow_graph.data.load import load_slide
from stflow_graph.flow.noise import spot_keys, spot_uniform
from stflow_graph.flow.prior import ZINBPrior
from stflow_graph.flow.sampler import heun
from stflow_graph.graph import SpatialGraph
from stflow_graph.nn.denoiser import GraphDenoiser

slide = load_slide(sys.argv[1])  # an embedding file
data = SpatialGraph(n_neighbors=8)(slide.to_data())  # PyG Data: edges and invariant geometry
model = GraphDenoiser(in_channels=data.x.size(1), n_genes=50).eval()
y_0 = ZINBPrior()(spot_uniform(spot_keys(slide.name, slide.barcodes), 50, seed=0))
with torch.inference_mode():
    flow = model.bind(data)  # what depends on neither noise nor time is made once
    y_1 = heun(flow, y_0, data, n_steps=6)  # any callable flow(y_t, t, data) will do

print(f"{slide.name}: {y_1.size(0)} spots, {y_1.size(1)} genes")
