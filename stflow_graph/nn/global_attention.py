"""Attention over a whole slide at a cost linear in its spots.

A layer is called as ``layer(h [N, C], batch [N], n_slides)`` and returns ``[N, C]``. One that also
works in two passes over parts of a slide runs by tiles: ``read`` summarises a part, ``merge``
joins two summaries, and ``spread`` returns the values of a part's spots.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.nn.inits import reset
from torch_geometric.utils import softmax


class LatentSummary(NamedTuple):
    """What latent tokens have read from some spots.

    Attributes:
        peak: ``[H, M, 1]`` the highest score.
        weight: ``[H, M, 1]`` sum of the exponentials of scores less the peak.
        states: ``[H, M, C]`` normed states weighted by them.
    """

    peak: Tensor
    weight: Tensor
    states: Tensor


_QUERY, _KEY, _VALUE = range(3)  # places in ``qkv``


class LatentAttention(nn.Module):
    r"""Global attention through M learned latent tokens, as in Perceiver (Jaegle et al., 2021).

    The tokens of a slide read all its spots, :math:`z_m = \sum_i \mathrm{softmax}_i(\tilde q_m^\top
    k_i) v_i`, and every spot reads the tokens,
    :math:`g_i = \sum_m \mathrm{softmax}_m(q_i^\top \tilde k_m) z_m`. Cost O(N M C), times the
    number of slides in a batch, which are never mixed.

    Args:
        channels: C.
        n_latents: M.
        heads: H, divides ``channels``.
    """

    def __init__(self, channels: int, n_latents: int = 16, heads: int = 4) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(f"heads must divide channels, got {heads} and {channels}")
        self.channels, self.n_latents, self.heads = channels, n_latents, heads
        self.norm = nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.queries = nn.Parameter(torch.empty(n_latents, heads, channels // heads))
        self.keys = nn.Parameter(torch.empty(n_latents, heads, channels // heads))
        self.out = nn.Linear(channels, channels)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new weights."""
        for module in (self.norm, self.qkv, self.out):
            module.reset_parameters()
        nn.init.normal_(self.queries)
        nn.init.normal_(self.keys)

    def forward(self, x: Tensor, batch: Tensor, n_slides: int) -> Tensor:
        """Return the global term of every spot, ``[N, C]``.

        Args:
            x: ``[N, C]`` states.
            batch: ``[N]`` slide of each spot.
            n_slides: number of slides.

        Raises:
            ValueError: shapes that do not fit; the message prints them.
        """
        _check(x, batch, self.channels)
        x = self.norm(x)
        if n_slides == 1 and len(x):
            return self._spread(x, self._read(x))
        read = softmax(self._scores(x, _KEY, self.queries), batch, num_nodes=n_slides)
        # a slide's tokens side by side with those of others, 0 where they are not the spot's:
        # matrix products instead of [N, H, M, C / H]
        own = F.one_hot(batch, n_slides).to(x.dtype)[..., None]  # [N, slides, 1]
        read, share = ((scores[:, None] * own).flatten(1) for scores in (read, self._shares(x)))
        tokens = self._tokens((read.T @ x).unflatten(0, (n_slides, self.heads, -1)))
        return share @ self._to_spots(tokens).flatten(0, 2) + self.out.bias

    def read(self, x: Tensor) -> LatentSummary:
        """Return what the tokens read from the spots ``x [n, C]`` of a slide, n >= 1."""
        return self._read(self.norm(x))

    def _read(self, x: Tensor) -> LatentSummary:
        # torch's softmax over the first dimension is many times slower than this on a GPU
        scores = self._scores(x, _KEY, self.queries)
        peak = scores.detach().amax(0)
        share = (scores - peak).exp()
        sums = (peak, share.sum(0), share.T @ x)
        return LatentSummary(*(total.view(self.heads, self.n_latents, -1) for total in sums))

    @staticmethod
    def merge(one: LatentSummary, other: LatentSummary) -> LatentSummary:
        """Return the summary of both parts."""
        peak = torch.maximum(one.peak, other.peak)
        a, b = (one.peak - peak).exp(), (other.peak - peak).exp()
        weight = a * one.weight + b * other.weight
        return LatentSummary(peak, weight, a * one.states + b * other.states)

    def spread(self, x: Tensor, summary: LatentSummary) -> Tensor:
        """Return the global term ``[n, C]`` of the spots ``x [n, C]`` of a slide."""
        return self._spread(self.norm(x), summary)

    def _spread(self, x: Tensor, summary: LatentSummary) -> Tensor:
        share = self._shares(x)
        tokens = self._tokens(summary.states / summary.weight)
        return torch.addmm(self.out.bias, share, self._to_spots(tokens).flatten(0, 1))

    def _shares(self, x: Tensor) -> Tensor:
        """Return how much each spot of ``x [n, C]`` reads of each token, ``[n, H M]``."""
        scores = self._scores(x, _QUERY, self.keys)
        return scores.unflatten(1, (self.heads, -1)).softmax(-1).flatten(1)

    # Queries, keys and values of spots meet few tokens only, so their maps are joined to the
    # tokens (associativity): a spot costs 4 M H C products and not 4 C² + 4 M C.

    def _map(self, which: int) -> tuple[Tensor, Tensor]:
        """Return weight ``[H, C / H, C]`` and bias ``[H, C / H]`` of one of q, k, v."""
        weight = self.qkv.weight.unflatten(0, (3, self.heads, -1))[which]
        return weight, self.qkv.bias.unflatten(0, (3, self.heads, -1))[which]

    def _scores(self, x: Tensor, which: int, tokens: Tensor) -> Tensor:
        """Return scaled products ``[n, H M]`` of a map of ``x [n, C]`` and ``[M, H, C / H]``."""
        weight, bias = self._map(which)
        tokens = tokens.transpose(0, 1) * tokens.size(-1) ** -0.5  # [H, M, C / H]
        return F.linear(x, (tokens @ weight).flatten(0, 1), (tokens @ bias[..., None]).flatten())

    def _tokens(self, states: Tensor) -> Tensor:
        """Return values ``[..., H, M, C / H]`` of means ``[..., H, M, C]`` of normed states."""
        weight, bias = self._map(_VALUE)
        return states @ weight.transpose(1, 2) + bias[:, None]

    def _to_spots(self, tokens: Tensor) -> Tensor:
        """Return what each token adds to a spot that reads it alone, ``[..., H, M, C]``."""
        return tokens @ self.out.weight.T.unflatten(0, (self.heads, -1))

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.channels}, n_latents={self.n_latents}, "
            f"heads={self.heads})"
        )


class PyGAttention(nn.Module):
    """Lets a global attention of PyG, such as ``PolynormerAttention``, act within each slide.

    The layer sees one slide at a time, as in its padded batches the padding may take part.

    Args:
        layer: a class of ``torch_geometric.nn.attention``, made as ``layer(C, heads, C / heads)``.
        channels: C.
        heads: H, divides ``channels``.
    """

    def __init__(self, layer: type[nn.Module], channels: int, heads: int = 4) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(f"heads must divide channels, got {heads} and {channels}")
        self.channels = channels
        self.norm = nn.LayerNorm(channels)
        self.attention: Any = layer(channels, heads, head_channels=channels // heads)
        self.out = nn.Linear(channels, channels)

    def reset_parameters(self) -> None:
        """Draw new weights."""
        for module in (self.norm, self.attention, self.out):
            reset(module)  # its children where the layer has no method of its own

    def forward(self, x: Tensor, batch: Tensor, n_slides: int) -> Tensor:
        """Return the global term of every spot, ``[N, C]``; arguments as of LatentAttention."""
        _check(x, batch, self.channels)
        x = self.norm(x)
        sizes = [size for size in torch.bincount(batch).tolist() if size]
        parts = [self.attention(part[None])[0] for part in x.split(sizes)] if sizes else [x]
        return self.out(torch.cat(parts))


def _check(x: Tensor, batch: Tensor, channels: int) -> None:
    if x.dim() != 2 or x.size(1) != channels:
        raise ValueError(f"x must be [N, {channels}], got {list(x.shape)}")
    if tuple(batch.shape) != (x.size(0),):
        raise ValueError(f"batch must be [{x.size(0)}], got {list(batch.shape)}")
