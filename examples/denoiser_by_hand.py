"""A slide, its graph, a denoiser, its prior and sampler, put together by hand."""

import sys

import torch

from stflow_graph.data.load import load_slide
from stflow_graph.flow.noise import spot_keys, spot_uniform
from stflow_graph.flow.prior import GaussianPrior
from stflow_graph.flow.sampler import euler
from stflow_graph.graph import SpatialGraph
from stflow_graph.nn.two_stage import TwoStageDenoiser

slide = load_slide(sys.argv[1])  # an embedding file
data = SpatialGraph(n_neighbors=8)(slide.to_data())  # PyG Data: edges and invariant geometry
# what `train --set flow.kind=spot` trains; from_pretrained(CHECKPOINT) loads it with weights
model = TwoStageDenoiser.make(in_channels=data.x.size(1), n_genes=50).eval()
y_0 = GaussianPrior()(spot_uniform(spot_keys(slide.name, slide.barcodes), 50, seed=0))
with torch.inference_mode():
    predict = model.bind(data)  # messages are passed here, once
    y_1 = euler(predict, y_0, n_steps=10)  # takes any callable predict(y_t, t)

print(f"{slide.name}: {y_1.size(0)} spots, {y_1.size(1)} genes")
