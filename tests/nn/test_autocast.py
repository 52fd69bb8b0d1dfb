"""Every network runs in mixed precision, and gives about what it gives in float32."""

import pytest
import torch
from networks import NETWORKS, F, G, graph, network
from slides import array, change, in_single, noise, slide

from stflow_graph.flow.sampler import euler


@pytest.mark.parametrize(("kind", "layers"), NETWORKS)
def test_values_and_gradients_in_bfloat16(kind, layers):
    data = in_single(graph(slide(array("jittered"), F, G), layers))
    y_t, t = noise(len(data.x), G, seed=5), torch.full((1,), 0.3)
    model = network(kind, layers).float()
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    expected = model(y_t, t, data)
    slopes = torch.autograd.grad(expected.square().sum(), learned, allow_unused=True)
    with torch.autocast("cpu", torch.bfloat16):
        actual = model(y_t, t, data)
        loss = actual.float().square().sum()
    assert change(actual.float(), expected) < 0.05
    lower = torch.autograd.grad(loss, learned, allow_unused=True)
    pairs = [(a, b) for a, b in zip(lower, slopes, strict=True) if b is not None]
    one, other = (
        torch.cat([part.flatten() for part in parts]) for parts in zip(*pairs, strict=True)
    )
    # the kernel features of PyG's Performer are exponentials
    least = 0.8 if layers == "Performer" else 0.99
    assert torch.nn.functional.cosine_similarity(one, other, dim=0) > least


@torch.no_grad()
def test_a_sample_in_bfloat16_is_of_the_type_of_its_noise():
    data = in_single(graph(slide(array("jittered"), F, G)))
    model, y_0 = network("every step").float(), noise(len(data.x), G, seed=5)
    expected = euler(model.bind(data), y_0, 4)
    with torch.autocast("cpu", torch.bfloat16):
        sample = euler(model.bind(data), y_0, 4)
    assert sample.dtype == torch.float32
    assert change(sample, expected) < 0.05
