"""Noise that belongs to a spot: counter-based uniforms keyed by seed, sample, spot and gene.

A generator's stream depends on how many numbers were drawn before, so a tile of a slide could
never see the noise of the whole slide. Here every number is a hash of its own address.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

_WORD = 1 << 64
_GOLDEN = 0x9E3779B97F4A7C15
_MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


def spot_keys(slide: str, barcodes: Sequence[str]) -> Tensor:
    """Return the 64-bit key of each spot: a BLAKE2b hash of its barcode, keyed by its slide.

    Args:
        slide: the slide's name.
        barcodes: N barcodes.

    Returns:
        ``[N]`` int64, on the CPU; the same for a spot whatever its place in the list.
    """
    of_slide = hashlib.blake2b(slide.encode(), digest_size=32).digest()
    digests = (hashlib.blake2b(b.encode(), digest_size=8, key=of_slide).digest() for b in barcodes)
    return torch.tensor([int.from_bytes(d, "little", signed=True) for d in digests]).long()


def spot_uniform(
    keys: Tensor, n_genes: int, seed: int, sample: int = 0, *, first: int = 0
) -> Tensor:
    r"""Return one uniform number for each (seed, sample, spot, gene).

    Row i is the SplitMix64 stream (Steele, Lea and Flood, OOPSLA 2014) that starts at
    :math:`s_i = m(k_i \oplus m(m(\mathrm{seed}) + \mathrm{sample}))`, m the generator's mixing
    function: :math:`u_{ig} = (\lfloor m(s_i + (g + 1) γ) / 2^{41} \rfloor + \tfrac12) / 2^{23}`.
    It is integer arithmetic, hence equal on every device. Rows depend on nothing but their key,
    and the first columns do not change when ``n_genes`` grows.

    Args:
        keys: ``[N]`` int64, from :func:`spot_keys`.
        n_genes: G.
        seed: any integer; taken modulo 2⁶⁴.
        sample: number of the draw; taken modulo 2⁶⁴.
        first: column of the stream to begin with.

    Returns:
        ``[N, G]`` float32 on ``keys``'s device, odd multiples of 2⁻²⁴: strictly inside (0, 1).

    Raises:
        ValueError: keys that are not ``[N]`` int64, or a negative ``n_genes``.
    """
    if keys.dim() != 1 or keys.dtype != torch.int64 or n_genes < 0:
        raise ValueError(
            f"keys must be [N] int64 and n_genes >= 0, got {list(keys.shape)} {keys.dtype} "
            f"and {n_genes}"
        )
    stream = _mix(_mix(torch.tensor(_signed(seed))) + _signed(sample))
    start = _mix(keys ^ stream.to(keys.device))
    gene = torch.arange(first + 1, first + n_genes + 1, device=keys.device)
    bits = _shift(_mix(start[:, None] + gene * _signed(_GOLDEN)), 41)
    # 23 bits and a half: with 24 the largest value would round to 1 in float32
    return (bits.float() + 0.5) * 2.0**-23


def open_uniform(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Return uniform noise of a generator on the CPU, for training, strictly inside (0, 1)."""
    # the inverse CDFs of priors are infinite at 0 and 1
    return torch.rand(shape, generator=generator).clamp(1e-7, 1 - 1e-7)


def _mix(z: Tensor) -> Tensor:
    """SplitMix64's finaliser; int64 multiplication wraps around as uint64 does."""
    z = (z ^ _shift(z, 30)) * _signed(_MULTIPLIERS[0])
    z = (z ^ _shift(z, 27)) * _signed(_MULTIPLIERS[1])
    return z ^ _shift(z, 31)


def _shift(z: Tensor, n: int) -> Tensor:
    # torch's >> keeps the sign; uint64's brings in zeros
    return (z >> n) & ((1 << (64 - n)) - 1)


def _signed(value: int) -> int:
    """Return the int64 with the bits of ``value`` modulo 2⁶⁴."""
    return (value + _WORD // 2) % _WORD - _WORD // 2
