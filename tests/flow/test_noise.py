from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from stflow_graph.flow import spot_keys, spot_uniform
from stflow_graph.flow.noise import _GOLDEN, _mix, _signed, open_uniform

KEYS = spot_keys("slide", [f"{i}x{i * 7 % 31}" for i in range(1000)])
integers = st.integers(-(2**70), 2**70)


def reference(key: int, gene: int, seed: int, sample: int) -> float:
    """Compute the documented formula in unbounded integers."""
    word = (1 << 64) - 1

    def mix(z: int) -> int:
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & word
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & word
        return z ^ (z >> 31)

    stream = mix((mix(seed & word) + sample) & word)
    start = mix((key & word) ^ stream)
    return ((mix((start + (gene + 1) * 0x9E3779B97F4A7C15) & word) >> 41) + 0.5) / 2**23


@given(st.integers(-(2**63), 2**63 - 1), integers, integers)
def test_equals_the_formula_in_unbounded_integers(key, seed, sample):
    u = spot_uniform(torch.tensor([key]), 3, seed, sample)
    assert u[0].double().tolist() == [reference(key, gene, seed, sample) for gene in range(3)]


def test_mixing_is_splitmix64():
    # the generator's published outputs for the seed 1234567
    counter = torch.tensor([_signed(1234567 + i * _GOLDEN) for i in (1, 2)])
    assert _mix(counter).tolist() == [6457827717110365317, 3203168211198807973]


def test_is_uniform_inside_the_open_interval():
    u = spot_uniform(KEYS, 200, seed=3)
    assert u.dtype == torch.float32
    assert 0 < u.min() < 1e-4
    assert 1 - 1e-4 < u.max() < 1
    assert stats.kstest(u.flatten().double().numpy(), "uniform").pvalue > 0.01
    means = u.double().mean(0).numpy()
    assert stats.kstest((means - 0.5) * np.sqrt(12 * len(KEYS)), "norm").pvalue > 0.01


def unmix(z: int) -> int:
    """Invert SplitMix64's mixing function."""
    for shift, factor in ((31, 0x94D049BB133111EB), (27, 0xBF58476D1CE4E5B9), (30, 1)):
        z = z ^ (z >> shift) ^ (z >> 2 * shift)  # exact for 3 shift >= 64
        z = z * pow(factor, -1, 1 << 64) % 2**64
    return z


@pytest.mark.parametrize(("bits", "expected"), [(0, 2.0**-24), (2**23 - 1, 1 - 2.0**-24)])
def test_extremes_stay_inside_in_float32(bits, expected):
    stream = int(_mix(_mix(torch.tensor(0)) + 0))
    start = _signed(unmix(bits << 41) - _GOLDEN)
    key = _signed(unmix(start % 2**64)) ^ stream
    assert spot_uniform(torch.tensor([key]), 1, seed=0).item() == expected


def correlations(a: torch.Tensor, b: torch.Tensor) -> np.ndarray:
    a, b = ((x.double() - x.double().mean(0)) / x.double().std(0) for x in (a, b))
    return (a.T @ b / len(a)).numpy()


def test_genes_spots_samples_and_seeds_are_uncorrelated():
    u = spot_uniform(KEYS, 40, seed=0)
    spots = spot_uniform(KEYS[:40], 1000, seed=0).T
    sample, seed = spot_uniform(KEYS, 40, seed=0, sample=1), spot_uniform(KEYS, 40, seed=1)
    keys = (spot_uniform(torch.arange(i, i + 1000), 40, seed=0) for i in (0, 1))
    others = ~np.eye(40, dtype=bool)
    pairs = {
        "genes": correlations(u, u)[others],
        "spots": correlations(spots, spots)[others],
        "samples": correlations(u, sample),
        "seeds": correlations(u, seed),
        "seed and sample swapped": correlations(seed, sample),
        "consecutive keys": correlations(*keys),
    }
    for name, values in pairs.items():
        # 1600 coefficients of standard deviation 1 / sqrt(1000)
        assert np.abs(values).max() < 5 / np.sqrt(1000), name
        assert abs(np.std(values) * np.sqrt(1000) - 1) < 0.15, name


def test_a_row_depends_on_its_key_only_and_further_genes_leave_the_first_unchanged():
    u = spot_uniform(KEYS, 6, seed=5, sample=2)
    order = torch.randperm(len(KEYS), generator=torch.Generator().manual_seed(0))
    assert torch.equal(spot_uniform(KEYS[order], 6, seed=5, sample=2), u[order])
    assert torch.equal(spot_uniform(KEYS[10:20], 6, seed=5, sample=2), u[10:20])
    assert spot_uniform(KEYS[:0], 6, seed=5).shape == (0, 6)
    assert torch.equal(spot_uniform(KEYS, 4, seed=5, sample=2), u[:, :4])


def test_keys_identify_slide_and_barcode():
    barcodes = ["AAAC-1", "AAAC-2", "é"]
    keys = spot_keys("A1", barcodes)
    assert keys.dtype == torch.int64
    assert torch.equal(spot_keys("A1", barcodes[::-1]), keys.flip(0))
    everything = [keys, spot_keys("A2", barcodes), spot_keys("A", ["1AAAC-1", "AAAC-1"]), KEYS]
    assert len(torch.cat(everything).unique()) == sum(map(len, everything))
    assert spot_keys("A1", []).dtype == torch.int64
    # a change of the hash would change every prediction of a seed
    assert spot_keys("B1", ["10x12"]).tolist() == [-2229417204424584286]


def test_noise_of_a_generator_is_uniform_inside_the_open_interval():
    u = open_uniform((1000, 100), torch.Generator().manual_seed(0))
    assert u.shape == (1000, 100)
    assert 0 < u.min() < u.max() < 1
    assert stats.kstest(u.flatten().double().numpy(), "uniform").pvalue > 0.01
    extreme = torch.tensor([0.0, 0.5, 1.0])
    with mock.patch("torch.rand", return_value=extreme):
        u = open_uniform((3,), torch.Generator())
    torch.testing.assert_close(u, extreme)
    assert ((u > 0) & (u < 1)).all()


@pytest.mark.gpu
def test_is_the_same_on_a_gpu():
    assert torch.equal(spot_uniform(KEYS.cuda(), 50, 7, 3).cpu(), spot_uniform(KEYS, 50, 7, 3))


@pytest.mark.parametrize(
    ("keys", "n_genes", "message"),
    [
        (torch.zeros(3, 1).long(), 2, r"\[3, 1\] torch.int64"),
        (torch.zeros(3), 2, r"\[3\] torch.float32"),
        (torch.zeros(3).long(), -1, "and -1"),
    ],
)
def test_wrong_arguments_are_printed(keys, n_genes, message):
    with pytest.raises(ValueError, match=message):
        spot_uniform(keys, n_genes, seed=0)


def test_columns_are_the_same_wherever_one_begins():
    keys = spot_keys("S", [str(i) for i in range(20)])
    whole = spot_uniform(keys, 9, seed=3, sample=2)
    assert torch.equal(spot_uniform(keys, 5, seed=3, sample=2, first=4), whole[:, 4:])
