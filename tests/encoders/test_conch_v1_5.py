from __future__ import annotations

import torch

from stflow_graph.encoders.conch_v1_5 import QueryPool, conch_v1_5


def test_the_query_attends_to_all_tokens():
    """Against attention written out, head by head."""
    torch.manual_seed(0)
    pool = QueryPool().eval()
    torch.nn.init.normal_(pool.query)
    tokens = torch.randn(2, 5, 1024)
    context = pool.ln_k(tokens)
    q = pool.ln_q(pool.query) @ pool.to_q.weight.T  # [1, 768]
    k, v = (context @ part.T for part in pool.to_kv.weight.chunk(2))  # [2, 5, 768]
    heads = []
    for h in range(8):
        cut = slice(h * 96, (h + 1) * 96)
        weight = (k[..., cut] @ q[0, cut] / 96**0.5).softmax(dim=1)  # [2, 5]
        heads.append((weight[..., None] * v[..., cut]).sum(1))
    expected = torch.cat(heads, dim=1) @ pool.to_out.weight.T
    assert torch.allclose(pool(tokens), expected, atol=1e-5)


def test_positions_of_224_px_are_resampled_to_448():
    plan = conch_v1_5(depth=1)
    with torch.device("meta"):
        network = plan.build()
    state = network.state_dict()
    assert state["trunk.pos_embed"].shape == (1, 785, 1024)
    assert state["attn_pool_contrast.query"].shape == (1, 768)
    assert network.trunk.norm.eps == 1e-6
    assert network.ln_contrast.eps == network.attn_pool_contrast.ln_k.eps == 1e-5
    positions = torch.zeros(1, 197, 1024)
    positions[:, 1:, 0] = torch.arange(14).repeat_interleave(14)  # rises by row
    positions[:, 1:, 1] = torch.arange(14).repeat(14)
    positions[:, 0, 2] = 5
    resampled = plan.rename({"trunk.pos_embed": positions})["trunk.pos_embed"]
    rows = resampled[0, 1:, 0].view(28, 28)
    assert torch.allclose(rows, rows[:, :1].expand(28, 28), atol=1e-5)
    assert torch.allclose(rows, resampled[0, 1:, 1].view(28, 28).T, atol=1e-5)
    # the scale is 14 / 28.1, as in the code of DINO, not 1 / 2
    assert abs(float(rows[22, 0] - rows[4, 0]) / 18 - 14 / 28.1) < 5e-4
    assert torch.equal(resampled[0, 0], positions[0, 0])
    again = plan.rename({"trunk.pos_embed": resampled})["trunk.pos_embed"]
    assert torch.equal(again, resampled)
