from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import approx_fprime
from scipy.spatial.distance import cdist

from stflow_graph.flow import kriging as module
from stflow_graph.flow.kriging import Kriging, Processes, Sites

CPU = torch.device("cpu")
RANGES = np.array([2.0, 12.0, 60.0])
PROCESSES = Processes(
    smooth=np.array([[0.5, 0.2, 0.3], [0.05, 0.9, 0.1]]),
    level=np.array([1.0, 0.2]),
    noise=np.array([0.4, 1.5]),
)


def places(n: int, seed: int = 0, width: float = 20.0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, width, (n, 2))


def keys_of(n: int) -> np.ndarray:
    return np.random.default_rng(9).permutation(n)


def covariance(left: np.ndarray, right: np.ndarray, c: int) -> np.ndarray:
    squares = cdist(left, right, "sqeuclidean")
    kernels = np.exp(-squares / RANGES[:, None, None])
    return np.tensordot(PROCESSES.smooth[c], kernels, 1) + PROCESSES.level[c]


def simulated(pos: np.ndarray, processes: Processes, seed: int) -> list[np.ndarray]:
    rng, n = np.random.default_rng(seed), len(pos)
    kernels = np.exp(-cdist(pos, pos, "sqeuclidean") / RANGES[:, None, None])
    values = []
    for smooth, noise in zip(processes.smooth, processes.noise, strict=True):
        total = np.tensordot(smooth, kernels, 1) + noise * np.eye(n)
        values.append(np.linalg.cholesky(total) @ rng.normal(size=(n, 1)))
    return values


def sites_of(processes: Processes, n: int, seed: int) -> Sites:
    pos = places(n, seed)
    return Sites.of(pos, RANGES, simulated(pos, processes, seed), keys_of(n))


def test_weights_are_those_of_simple_kriging():
    seen, asked = places(50), places(30, seed=1)
    index, weights = Kriging(seen, keys_of(50), PROCESSES, RANGES, CPU).weights(asked)
    for c in range(2):
        noise = PROCESSES.noise[c] + 1e-3 * (PROCESSES.smooth[c].sum() + PROCESSES.level[c])
        among = covariance(seen, seen, c) + noise * np.eye(50)
        expected = np.linalg.solve(among, covariance(seen, asked, c)).T
        found = np.zeros((30, 50))
        np.put_along_axis(found, index.numpy(), weights[:, c].numpy(), axis=1)
        np.testing.assert_allclose(found, expected, atol=2e-4)


def test_of_many_spots_each_informs_once_and_nearly_as_all_do():
    seen, asked = places(400), places(40, seed=1)
    index, weights = Kriging(seen, keys_of(400), PROCESSES, RANGES, CPU).weights(asked)
    assert index.shape == (40, 64)
    values = simulated(seen, PROCESSES, 3)[0][:, 0]
    for i, row in enumerate(index.numpy()):
        used = weights[i, 0].numpy() != 0
        assert len(set(row[used])) == used.sum()
        nearest = np.argsort(cdist(asked[[i]], seen)[0])[:48]
        assert set(nearest) <= set(row)
    noise = PROCESSES.noise[0] * np.eye(400)
    exact = covariance(asked, seen, 0) @ np.linalg.solve(covariance(seen, seen, 0) + noise, values)
    found = (weights[:, 0].numpy() * values[index]).sum(1)
    assert np.corrcoef(found, exact)[0, 1] > 0.99
    assert np.abs(found - exact).max() < 0.25 * exact.std()


def test_neither_order_nor_company_matter():
    seen, asked = np.round(places(200)), np.round(places(50, seed=1))  # many are as near
    seen = np.unique(seen, axis=0)
    n, keys = len(seen), keys_of(len(seen))
    values = torch.from_numpy(np.random.default_rng(0).normal(size=n)).float()

    def predicted(order: np.ndarray, rows: np.ndarray) -> torch.Tensor:
        kriging = Kriging(seen[order], keys[order], PROCESSES, RANGES, CPU)
        index, weights = kriging.weights(asked[rows])
        return (weights * values[order][index][:, None]).sum(-1)

    whole = predicted(np.arange(n), np.arange(50))
    order = np.random.default_rng(1).permutation(n)
    torch.testing.assert_close(predicted(order, np.arange(50)), whole, rtol=0, atol=1e-6)
    part = predicted(np.arange(n), np.array([41, 3]))
    torch.testing.assert_close(part, whole[[41, 3]], rtol=0, atol=1e-6)


def test_the_slope_of_the_likelihood(monkeypatch):
    sites, parameters = sites_of(PROCESSES, 30, 0), np.array([0.3, 0.2, 0.6, 0.9])

    def deviance(logs: np.ndarray) -> float:
        return module._deviance(sites.kernels, np.exp(logs), 0.5, sites.values[0])[0]

    slope = module._deviance(sites.kernels, parameters, 0.5, sites.values[0])[1] * parameters
    np.testing.assert_allclose(approx_fprime(np.log(parameters), deviance), slope, atol=1e-3)


def test_what_slides_have_in_common_is_found():
    true = Processes(
        smooth=np.array([[0.8, 0.2, 0.2], [0.16, 0.04, 0.04]]),
        level=np.ones(2),
        noise=np.array([0.5, 1.0]),
    )
    slides = [sites_of(true, 200, seed) for seed in range(6)]
    variances = np.array([v.var() for v in slides[0].values])
    found = Processes.fit(slides, variances)
    np.testing.assert_allclose(found.smooth.sum(1), true.smooth.sum(1), rtol=0.5)
    np.testing.assert_allclose(found.noise, true.noise, rtol=0.25)
    assert (found.smooth.argmax(1) == 0).all()


@pytest.mark.parametrize(("times", "louder"), [(6.0, 1.0), (1 / 6, 1.0), (1.0, 2.0)])
def test_a_slide_tells_its_amplitude_and_its_noise(times, louder):
    slide = Processes(times * PROCESSES.smooth, PROCESSES.level, louder * PROCESSES.noise)
    found = PROCESSES.adapted(sites_of(slide, 250, 4))
    assert found.smooth.sum() / PROCESSES.smooth.sum() == pytest.approx(times, rel=0.6)
    assert np.mean(found.noise / PROCESSES.noise) == pytest.approx(louder, rel=0.3)


def test_a_few_spots_tell_little():
    for seed in range(5):
        found = PROCESSES.adapted(sites_of(PROCESSES, 2, seed))
        assert 0.2 < found.smooth.sum() / PROCESSES.smooth.sum() < 3


def test_genes_that_share_parameters_do_not_drown_the_rest():
    loud = Processes(20 * PROCESSES.smooth, PROCESSES.level, PROCESSES.noise)
    pos = places(60)
    of_one = simulated(pos, PROCESSES, 0)[0]
    many = np.concatenate([simulated(pos, loud, seed)[1] for seed in range(40)], axis=1)
    few, lots = (
        PROCESSES.adapted(Sites.of(pos, RANGES, [of_one, many[:, :n]], keys_of(60))).smooth.sum()
        for n in (2, 40)
    )
    assert lots == pytest.approx(few, rel=0.5)


def test_sites_are_clusters_whatever_the_order():
    pos, keys = places(2000), keys_of(2000)
    order = np.random.default_rng(2).permutation(2000)
    first = Sites.of(pos, RANGES, [pos[:, :1]], keys)
    again = Sites.of(pos[order], RANGES, [pos[order, :1]], keys[order])
    assert 128 < len(first.values[0]) <= 256
    np.testing.assert_array_equal(first.values[0], again.values[0])
    np.testing.assert_array_equal(first.kernels, again.kernels)
    # both near and far pairs are among them
    assert (first.kernels[0] > 0.5).sum() > 3 * len(first.kernels[0])
    assert (first.kernels[2] < 0.1).any()
