"""Attention over a whole slide at a cost linear in its spots."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.nn.attention import PolynormerAttention
from torch_geometric.utils import softmax


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
        n, width = x.size(0), self.channels // self.heads
        q, k, v = self.qkv(self.norm(x)).view(n, 3, self.heads, width).permute(1, 2, 0, 3)
        read = k @ self.queries.permute(1, 2, 0) * width**-0.5  # [H, N, M]
        spread = (q @ self.keys.permute(1, 2, 0) * width**-0.5).softmax(-1)
        if n_slides == 1:
            read = read.softmax(1)
        else:
            read = softmax(read, batch, num_nodes=n_slides, dim=1)
            # a slide's tokens side by side with those of others, 0 where they are not the spot's:
            # matrix products instead of [N, H, M, C / H]
            own = F.one_hot(batch, n_slides).to(x.dtype)[..., None]  # [N, slides, 1]
            read, spread = ((each[:, :, None] * own).flatten(2) for each in (read, spread))
        tokens = read.transpose(1, 2) @ v  # [H, slides M, C / H]
        return self.out((spread @ tokens).transpose(0, 1).flatten(1))

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.channels}, n_latents={self.n_latents}, "
            f"heads={self.heads})"
        )


class LinearAttention(nn.Module):
    r"""Global attention with a sigmoid kernel.

    :math:`g_i = σ(q_i)^\top \sum_j σ(k_j) v_j^\top / σ(q_i)^\top \sum_j σ(k_j)`, by
    PyG's ``PolynormerAttention`` (Deng et al., ICLR 2024), slide by slide: in its padded batches
    the padding enters the denominators. Of PyG's linear attentions it is the one that neither
    draws random features nor writes into its inputs. Cost O(N C²/H). ``torch.compile`` takes it
    without graph breaks for one slide, as in sampling; the sizes of several are not known to it.

    Args:
        channels: C.
        heads: H, divides ``channels``.
    """

    def __init__(self, channels: int, heads: int = 4) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(f"heads must divide channels, got {heads} and {channels}")
        self.channels, self.heads = channels, heads
        self.norm = nn.LayerNorm(channels)
        self.attention = PolynormerAttention(channels, heads, head_channels=channels // heads)
        self.out = nn.Linear(channels, channels)

    def reset_parameters(self) -> None:
        """Draw new weights."""
        for module in (self.norm, self.attention, self.attention.lin_out, self.out):
            module.reset_parameters()

    def forward(self, x: Tensor, batch: Tensor, n_slides: int) -> Tensor:
        """Return the global term of every spot, ``[N, C]``.

        Args:
            x: ``[N, C]`` states.
            batch: ``[N]`` slide of each spot, ascending.
            n_slides: number of slides.

        Raises:
            ValueError: shapes that do not fit; the message prints them.
        """
        _check(x, batch, self.channels)
        x = self.norm(x)
        if x.size(0) == 0:
            return self.out(x)
        if n_slides == 1:
            return self.out(self.attention(x[None])[0])
        sizes = [size for size in torch.bincount(batch).tolist() if size]
        return self.out(torch.cat([self.attention(part[None])[0] for part in x.split(sizes)]))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.channels}, heads={self.heads})"


GLOBAL_ATTENTIONS: dict[str, type[LatentAttention] | type[LinearAttention]] = {
    "latent": LatentAttention,
    "linear": LinearAttention,
}


def _check(x: Tensor, batch: Tensor, channels: int) -> None:
    if x.dim() != 2 or x.size(1) != channels:
        raise ValueError(f"x must be [N, {channels}], got {list(x.shape)}")
    if tuple(batch.shape) != (x.size(0),):
        raise ValueError(f"batch must be [{x.size(0)}], got {list(batch.shape)}")
