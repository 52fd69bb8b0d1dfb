"""The default denoiser: an encoder that runs once a slide, and a flow of single spots."""

from __future__ import annotations

from typing import Any, Self

from torch import Tensor
from torch_geometric.data import Data

from stflow_graph.flow.sampler import Model
from stflow_graph.graph.tiles import GraphView
from stflow_graph.graph.whole import WholeGraph, slide_of_spots
from stflow_graph.nn.checks import check_graph, check_spots
from stflow_graph.nn.encoder import Encoding, GraphEncoder
from stflow_graph.nn.pretrained import Pretrained
from stflow_graph.nn.spot_flow import SpotFlow


class TwoStageDenoiser(Pretrained):
    r"""Predicts y₁ from y_t: messages once a slide, then a flow in gene space.

    The :class:`GraphEncoder` sees neither noise nor flow time; it is trained as a regression. The
    :class:`SpotFlow`, trained afterwards by flow matching, starts from its encoding. Sampling thus
    costs one pass over the graph, whatever the number of steps and samples.

    Args:
        encoder: the network that passes messages.
        flow: of single spots; None: only the expected expression is predicted.
    """

    def __init__(self, encoder: GraphEncoder, flow: SpotFlow | None = None) -> None:
        super().__init__()
        self.encoder, self.flow = encoder, flow

    @classmethod
    def make(cls, flow: bool = True, **arguments: Any) -> Self:
        """Return a denoiser with new weights, which knows the arguments it was made with.

        Args:
            flow: whether there is a flow.
            **arguments: of :class:`GraphEncoder`.
        """
        encoder = GraphEncoder(**arguments)
        network = cls(encoder, SpotFlow(encoder.channels, encoder.n_genes) if flow else None)
        network.arguments = {**arguments, "flow": flow}
        return network

    @property
    def n_genes(self) -> int:
        """G."""
        return self.encoder.n_genes

    def forward(self, y_t: Tensor, t: Tensor, data: Data) -> Tensor:
        """Return the estimate of y₁, ``[N, G]``.

        Args:
            y_t: ``[N, G]`` noised expression of all spots of the batch.
            t: ``[n_slides]`` flow time of each slide, in [0, 1].
            data: as of :class:`GraphEncoder`.

        Raises:
            ValueError: shapes, dtypes or edges that do not fit; the message prints them.
        """
        encoder = self.encoder
        check_spots(y_t, t, data.x, data.batch, encoder.in_channels, encoder.n_genes)
        check_graph(data)
        encoding = encoder(data, WholeGraph.of(data, t.size(0)))
        if self.flow is None:
            return encoding.mean
        return self.flow(y_t, t[slide_of_spots(data)], *encoding)

    def bind(self, data: Data, graph: GraphView | None = None) -> Model:
        """Return :meth:`forward` on one slide or batch, its encoding computed once.

        Args:
            data: as of :class:`GraphEncoder`.
            graph: the view of the graph to use; None makes one of the whole.
        """
        return self.flow_from(self.encoder(data, graph))

    def flow_from(self, encoding: Encoding) -> Model:
        """Return ``model(y_t, t [1])`` given what the encoder computed of the spots."""

        def model(y_t: Tensor, t: Tensor) -> Tensor:
            return encoding.mean if self.flow is None else self.flow(y_t, t, *encoding)

        return model
