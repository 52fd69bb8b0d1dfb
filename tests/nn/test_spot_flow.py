from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file
from torch_geometric.data import Data

from stflow_graph.flow.sampler import euler
from stflow_graph.graph import SpatialGraph
from stflow_graph.nn.denoiser import GraphDenoiser
from stflow_graph.nn.ensemble import DenoiserEnsemble
from stflow_graph.nn.spot_flow import Condition, SpotFlow, bound, conditional


def slide(n: int = 30) -> Data:
    generator = torch.Generator().manual_seed(n)
    pos = torch.rand(n, 2, generator=generator)
    return SpatialGraph(n_neighbors=4)(Data(x=torch.randn(n, 6, generator=generator), pos=pos))


def denoiser(seed: int = 0, **options) -> GraphDenoiser:
    torch.manual_seed(seed)
    options = {"hidden_channels": 8, "edge_channels": 8, "n_layers": 2, **options}
    return GraphDenoiser(6, 3, graph_once=True, context_hops=(1, 2), **options).eval()


def condition(n: int = 20) -> Condition:
    generator = torch.Generator().manual_seed(n)
    mean = torch.randn(n, 3, generator=generator)
    return Condition(mean, torch.randn(n, 8, generator=generator))


def trained(flow: SpotFlow) -> SpotFlow:
    """Give it weights that do something."""
    for parameter in flow.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return flow.eval()


def test_at_time_0_the_estimate_is_the_mean_whatever_the_noise():
    flow, given = trained(SpotFlow(8, 3)), condition()
    for scale in (0.0, 1.0, 100.0):
        found = flow(torch.randn(20, 3) * scale, torch.zeros(1), torch.zeros(20).long(), given)
        torch.testing.assert_close(found, given.mean)


def test_normal_residuals_are_sampled_exactly():
    # y ~ N(mean, s²): the first two terms are the exact denoiser, the MLP is still 0
    n = 40_000
    flow = SpotFlow(8, 1).eval()
    with torch.no_grad():
        flow.log_variance.bias.fill_(2 * torch.tensor(0.4).log().item())
    given = Condition(torch.full((n, 1), 1.5), torch.zeros(n, 8))
    batch = torch.zeros(n).long()
    y_0 = torch.randn(n, 1, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        y = euler(lambda y, t, data: flow(y, t, batch, given), y_0, Data(x=y_0), 200)
    assert y.mean().item() == pytest.approx(1.5, abs=0.01)
    assert y.std().item() == pytest.approx(0.4, abs=0.02)


def test_spots_do_not_see_each_other_and_slides_have_their_own_times():
    flow, given = trained(SpotFlow(8, 3)), condition()
    y, batch = torch.randn(20, 3), (torch.arange(20) >= 8).long()
    t = torch.tensor([0.2, 0.7])
    whole = flow(y, t, batch, given)
    rows = torch.tensor([9, 2])
    part = flow(
        y[rows], t.flip(0), torch.tensor([0, 1]), Condition(given.mean[rows], given.states[rows])
    )
    torch.testing.assert_close(part, whole[rows])


def test_states_beyond_those_of_training_are_read_as_the_nearest():
    flow, given = trained(SpotFlow(8, 3)), condition(400)
    call = (torch.randn(400, 3), torch.full((1,), 0.6), torch.zeros(400).long())
    free = flow(*call, given)
    flow.set_range(given.states)
    ordered = given.states.sort(dim=0).values  # 1% of 400 spots lie below, 1% above
    torch.testing.assert_close(flow.lowest, ordered[4])
    torch.testing.assert_close(flow.highest, ordered[-5])
    inside = ((given.states >= ordered[4]) & (given.states <= ordered[-5])).all(1)
    assert 250 < inside.sum() < 400
    torch.testing.assert_close(flow(*call, given)[inside], free[inside])
    far = Condition(given.mean, given.states.sign() * 1e6)
    ends = Condition(given.mean, torch.where(far.states > 0, ordered[-5], ordered[4]))
    torch.testing.assert_close(flow(*call, far), flow(*call, ends))
    flow.set_range(given.states[:1])
    torch.testing.assert_close(flow.lowest, given.states[0])


def test_weights_from_before_there_was_a_range_read_states_as_they_are(tmp_path):
    model, data = denoiser(), slide()
    trained(model.spot_flow)
    call = (torch.randn(30, 3), torch.tensor([0.4]), data)
    weights = {k: v for k, v in model.state_dict().items() if not k.endswith(("lowest", "highest"))}
    assert len(weights) == len(model.state_dict()) - 2
    other = denoiser(1)
    other.load_state_dict(weights)
    torch.testing.assert_close(other(*call), model(*call))
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "sha256": {}}))
    save_file(weights, tmp_path / "model.safetensors")
    torch.testing.assert_close(GraphDenoiser.from_pretrained(tmp_path)(*call), model(*call))


def test_the_two_halves_are_the_whole():
    model, data = denoiser(), slide()
    trained(model.spot_flow)
    y, t = torch.randn(30, 3), torch.tensor([0.4])
    halves = conditional(model)
    (flow,) = halves.flows(halves.condition(data))
    torch.testing.assert_close(model(y, t, data), flow(y, t, data))
    torch.testing.assert_close(model(y, torch.zeros(1), data), halves.condition(data).mean)


def test_a_denoiser_with_the_graph_in_every_step_has_no_halves():
    model = GraphDenoiser(6, 3, hidden_channels=8, edge_channels=8, n_layers=1)
    assert conditional(model) is None
    with pytest.raises(ValueError, match="graph_once=True"):
        model.condition(slide())
    with pytest.raises(ValueError, match="condition_on_y"):
        GraphDenoiser(6, 3, graph_once=True, condition_on_y=True)


def test_what_does_not_fit_is_refused():
    model, data = denoiser(), slide()
    with pytest.raises(ValueError, match=r"data.x must be \[30, 6\]"):
        model.condition(Data(x=data.x[:, :4], edge_index=data.edge_index))
    with pytest.raises(ValueError, match=r"y_t must be \[30, 3\]"):
        model.denoise(torch.zeros(30, 2), torch.zeros(1), data, model.condition(data))


def test_an_ensemble_is_the_mean_of_its_members():
    members, data = [denoiser(seed) for seed in range(3)], slide()
    for member in members:
        trained(member.spot_flow)
    model = DenoiserEnsemble(members)
    y, t = torch.randn(30, 3), torch.tensor([0.4])
    expected = torch.stack([member(y, t, data) for member in members]).mean(0)
    torch.testing.assert_close(model(y, t, data), expected)
    halves = conditional(model)
    condition = halves.condition(data)
    means = [member(y, torch.zeros(1), data) for member in members]
    torch.testing.assert_close(condition.mean, torch.stack(means).mean(0))
    # samples take the members' flows in turn, each about the mean of all
    for member, mean, flow in zip(members, means, halves.flows(condition), strict=True):
        shift = condition.mean - mean
        own = member(y - t * shift, t, data)
        torch.testing.assert_close(flow(y, t, data), own + shift)
    every_step = DenoiserEnsemble([GraphDenoiser(6, 3, 8, 8, 4, 2).eval() for _ in range(2)])
    torch.testing.assert_close(bound(every_step, data)(y, t, data), every_step(y, t, data))
    with pytest.raises(ValueError, match="needs a member"):
        DenoiserEnsemble([])
    mixed = DenoiserEnsemble([GraphDenoiser(6, 3, 8, 8, 4, 1)])
    assert conditional(mixed) is None
