"""Slides in memory for the tests of graphs and networks: arrays of spots with random values."""

import math

import torch
from torch import Tensor
from torch_geometric.data import Data

ARRAYS = ("hexagonal", "square", "jittered", "line", "duplicates", "heap", "isolated")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Return normal noise of a seed, float32."""
    return torch.randn(shape, generator=seeded(seed))


def array(kind: str, side: int = 7) -> Tensor:
    """Return the positions of an array of spots, ``[N, 2]`` float64 in pitches."""
    axes = torch.meshgrid(*[torch.arange(side).double()] * 2, indexing="ij")
    i, j = (axis.flatten() for axis in axes)
    hexagonal = torch.stack([i + 0.5 * (j % 2), j * math.sqrt(3) / 2], 1)
    jittered = hexagonal + 0.1 * noise(side**2, 2, seed=side)
    steps = torch.arange(4.0 * side).double()
    return {
        "hexagonal": hexagonal,
        "square": torch.stack([i, j], 1),
        "jittered": jittered,
        "line": torch.stack([steps, torch.zeros_like(steps)], 1),
        "duplicates": torch.cat([jittered, jittered[: 2 * side], torch.zeros(3, 2)]),
        # more spots at one place than there are neighbours
        "heap": torch.cat([jittered, torch.full((12, 2), 1.7)]),
        "isolated": torch.cat([jittered, torch.tensor([[500.0, -300.0], [-700.0, 900.0]])]),
    }[kind]


def scattered(n: int, seed: int = 0) -> Tensor:
    """Return positions drawn from the unit square, ``[n, 2]`` float64."""
    return torch.rand(n, 2, generator=seeded(seed), dtype=torch.float64)


def slide(spots: int | Tensor, channels: int = 6, genes: int = 0, seed: int | None = None) -> Data:
    """Return a slide of n scattered spots or of spots at these positions.

    ``x [N, channels]`` is random and so is ``y [N, genes]`` if there are genes.
    """
    n = spots if isinstance(spots, int) else len(spots)
    seed = n if seed is None else seed
    data = Data(x=noise(n, channels, seed=seed))
    data.pos = scattered(n, seed) if isinstance(spots, int) else spots
    if genes:
        data.y = noise(n, genes, seed=seed + 1)
    return data


def motion(angle: float, reflect: bool = False) -> Tensor:
    """Return the matrix M of a rotation by an angle, after a reflection; ``pos @ M.T`` moves."""
    cos, sin, sign = math.cos(angle), math.sin(angle), -1.0 if reflect else 1.0
    return torch.tensor([[cos, -sin * sign], [sin, cos * sign]], dtype=torch.float64)


def reordered(data: Data, order: Tensor) -> Data:
    """Return a slide without its graph, its spots in another order."""
    kept = [key for key in ("x", "y", "pos") if key in data]
    return Data(**{key: data[key][order] for key in kept})


def in_double(data: Data) -> Data:
    return data.apply(lambda value: value.double() if value.is_floating_point() else value)


def in_single(data: Data) -> Data:
    return data.apply(lambda value: value.float() if value.is_floating_point() else value)


def reach(edge_index: Tensor, spot: int, n_hops: int) -> set[int]:
    """Return the spots that a spot sees through so many layers of messages."""
    reached = {spot}
    for _ in range(n_hops):
        reached |= {sender for sender, receiver in edge_index.T.tolist() if receiver in reached}
    return reached


def change(actual: Tensor, expected: Tensor) -> float:
    """Return the difference relative to the expected values, in the Euclidean norm."""
    return ((actual - expected).norm() / expected.norm()).item()
