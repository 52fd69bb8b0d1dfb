from __future__ import annotations

import json

import pytest
import torch
from group_runs import run
from ranks import start_ranks

MANY = {"train__regions_per_slide": 2, "train__batch_size": 4}
CASES = {
    # of 6 regions a step has 4 and one has 2: a third process has none in it
    "regions": ("two-stage", {**MANY, "train__smallest_region": 0.3}),
    "halos": ("two-stage", {**MANY, "train__max_spots_per_batch": 40}),
    "missing genes": ("two-stage", {**MANY, "missing": True}),
    "no correlation": ("regression", {**MANY, "train__pcc_weight": 0.0}),
    "flow": ("graph", {**MANY, "train__smallest_region": 0.3}),
    "transformer": ("transformer", {**MANY, "train__smallest_region": 0.3}),
}


@pytest.fixture(scope="module", params=[2, 3])
def several(request, tmp_path_factory):
    """What each of the processes found in every case, and their folder."""
    folder = tmp_path_factory.mktemp("several")
    for process in start_ranks(request.param, ["-m", "group_runs", str(folder), json.dumps(CASES)]):
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    files = [folder / f"{rank}.pt" for rank in range(request.param)]
    return [torch.load(file, weights_only=False) for file in files], folder


@pytest.mark.parametrize("case", CASES)
def test_processes_together_take_the_steps_of_one(tmp_path, several, case):
    kind, changes = CASES[case]
    alone = run(tmp_path, kind, dict(changes), None)
    found_by_all, folder = several
    several = [found[case] for found in found_by_all]
    assert len(alone["gradients"]) == len(several[0]["gradients"]) >= 4
    scale = max(gradient.abs().max() for gradient in alone["gradients"])
    for expected, found in zip(alone["gradients"], several[0]["gradients"], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(scale))
    for expected, found in zip(alone["history"], several[0]["history"], strict=True):
        for key in ("loss", "validation_mse", "validation_pearson"):
            assert found[key] == pytest.approx(expected[key], rel=1e-5, abs=1e-6), key
    for other in several[1:]:  # the processes agree to the last bit
        assert other["weights"].keys() == several[0]["weights"].keys()
        assert all(torch.equal(other["weights"][k], v) for k, v in several[0]["weights"].items())
        assert torch.equal(torch.stack(other["gradients"]), torch.stack(several[0]["gradients"]))
    # the first one alone keeps the state
    assert [file.name for file in (folder / case).iterdir()] == ["state.safetensors"]
