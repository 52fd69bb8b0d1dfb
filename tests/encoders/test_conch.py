from __future__ import annotations

import torch

from stflow_graph.encoders.conch import AttentionPool, conch


def test_the_query_attends_to_all_tokens():
    """Against attention written out, head by head."""
    torch.manual_seed(0)
    pool = AttentionPool().eval()
    torch.nn.init.normal_(pool.query)
    tokens = torch.randn(2, 5, 768)
    attn, width = pool.attn, 512 // 8
    bias_q, bias_k, bias_v = attn.in_proj_bias.chunk(3)
    context = pool.ln_k(tokens)
    q = pool.ln_q(pool.query) @ attn.q_proj_weight.T + bias_q  # [1, 512]
    k = context @ attn.k_proj_weight.T + bias_k  # [2, 5, 512]
    v = context @ attn.v_proj_weight.T + bias_v
    heads = []
    for h in range(8):
        cut = slice(h * width, (h + 1) * width)
        weight = (k[..., cut] @ q[0, cut] / width**0.5).softmax(dim=1)  # [2, 5]
        heads.append((weight[..., None] * v[..., cut]).sum(1))
    expected = attn.out_proj(torch.cat(heads, dim=1))
    assert torch.allclose(pool(tokens), expected, atol=1e-5)


def test_a_file_of_the_whole_model_gives_its_image_tower():
    plan = conch(depth=1)
    with torch.device("meta"):
        tower = plan.build().state_dict()
    others = ("text.ln_final.weight", "text_decoder.ln_final.bias", "logit_scale")
    heads = ("visual.proj_contrast", "visual.attn_pool_caption.query", "visual.ln_caption.bias")
    whole = {f"visual.{key}": value for key, value in tower.items()}
    whole |= {key: torch.zeros(1) for key in (*others, *heads)}
    for state in (whole, {f"module.{key}": value for key, value in whole.items()}):
        renamed = plan.rename(state)
        assert {k for k in renamed if not k.startswith(plan.unused)} == set(tower)
    assert "attn_pool_contrast.attn.q_proj_weight" in tower
    assert tower["trunk.pos_embed"].shape == (1, 785, 768)
