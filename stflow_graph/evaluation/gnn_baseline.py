"""The simple GNN baseline: one-shot regression by mean aggregation, no flow, no geometry."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch_geometric.data import Data

from stflow_graph.data.normalise import Normalisation
from stflow_graph.data.slide import Slide
from stflow_graph.flow.loss import flow_loss
from stflow_graph.graph import Averaging, SpatialGraph
from stflow_graph.stats.panels import mean_of_measured

_STEPS, _EMA = 120, 0.97


class SimpleGNN(nn.Module):
    r""":math:`h \leftarrow h + \mathrm{GELU}(A\,\mathrm{LN}(h) + B\,\overline{\mathrm{LN}(h)})`.

    The bar is the mean over a spot's neighbours.

    Args:
        in_channels: F.
        n_genes: G.
        channels: C.
        n_layers: L.
        input_dropout: of the embeddings.
    """

    def __init__(
        self,
        in_channels: int,
        n_genes: int,
        channels: int = 64,
        n_layers: int = 2,
        input_dropout: float = 0.7,
    ) -> None:
        super().__init__()
        self.dropout = nn.Dropout(input_dropout)
        self.embed = nn.Linear(in_channels, channels)
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(n_layers))
        self.own = nn.ModuleList(nn.Linear(channels, channels) for _ in range(n_layers))
        self.around = nn.ModuleList(
            nn.Linear(channels, channels, bias=False) for _ in range(n_layers)
        )
        self.read_out = nn.Linear(channels, n_genes)

    def forward(self, data: Data) -> Tensor:
        """Return the expected expression ``[N, G]`` of a slide with its spatial graph."""
        h = self.embed(self.dropout(data.x))
        average = Averaging(data.edge_index, data.edge_weight, h.size(0))
        for norm, own, around in zip(self.norms, self.own, self.around, strict=True):
            z = norm(h)
            h = h + F.gelu(own(z) + around(average(z)))
        return self.read_out(h)


def fit_simple_gnn(train: Sequence[Slide], *, seed: int = 0) -> Callable[[Slide], np.ndarray]:
    """Train a :class:`SimpleGNN` on whole slides with fixed settings.

    Embeddings are standardised and expression centred within each slide; AdamW (2e-3, weight
    decay .5), squared error + 1 − PCC, 120 steps over all slides, moving average of the weights.

    Args:
        train: training slides with ``y``.
        seed: of weights and dropout.
    """
    level = mean_of_measured(
        np.stack([slide.truth.mean(axis=0, dtype=np.float64) for slide in train])
    )
    slides = [_data(slide) for slide in train]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = SimpleGNN(slides[0].x.size(1), slides[0].y.size(1))
        average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(_EMA)).eval()
        average.update_parameters(model)  # the first update copies, so the average starts here
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.5)
        for _ in range(_STEPS):
            optimizer.zero_grad(set_to_none=True)
            for data in slides:
                loss = flow_loss(model(data), data.y, pcc_weight=1.0)
                (loss / len(slides)).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            average.update_parameters(model)

    def predict(slide: Slide) -> np.ndarray:
        with torch.inference_mode():
            return level + average(_data(slide)).double().numpy()

    return predict


def _data(slide: Slide) -> Data:
    scaling = Normalisation.fit([slide.x], [np.zeros((len(slide), 1))], "slide", True)
    data = SpatialGraph()(slide.to_data())
    data.x = torch.from_numpy(scaling.embeddings(slide.x))
    if slide.y is not None:
        data.y = torch.from_numpy(scaling.targets(slide.y))
    return data
