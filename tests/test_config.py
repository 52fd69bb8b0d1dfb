from __future__ import annotations

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stflow_graph.config import Config, load_config, parse_assignments
from stflow_graph.errors import BadConfig, BadInput

ROOTS = {"data.source_dataroot": "root", "data.embed_dataroot": "emb"}


def test_the_command_line_wins_over_the_file_and_the_file_over_the_recipe(tmp_path):
    file = tmp_path / "c.toml"
    file.write_text('[denoiser]\nname = "transformer"\n[train]\nlr = 1e-3\nepochs = 3\n')
    config = load_config(file, {**ROOTS, "train.epochs": 7})
    assert config.denoiser.name == "transformer"
    assert (config.train.lr, config.train.epochs) == (1e-3, 7)
    assert config.flow.sampler == "stflow"  # the published recipe
    assert load_config(None, ROOTS).denoiser.name == "graph"


@given(
    lr=st.floats(1e-6, 1.0),
    seed=st.integers(0, 2**31),
    layers=st.integers(1, 9),
    denoiser=st.sampled_from(["graph", "transformer"]),
    datasets=st.lists(st.text("ABC", min_size=1), max_size=3),
)
def test_what_is_saved_loads_as_the_same_configuration(
    tmp_path_factory, lr, seed, layers, denoiser, datasets
):
    values = {
        **ROOTS,
        "train.lr": lr,
        "train.seed": seed,
        "denoiser.name": denoiser,
        "denoiser.n_layers": layers,
        "data.datasets": datasets,
    }
    config = load_config(None, values)
    file = tmp_path_factory.mktemp("config") / "c.toml"
    config.save(file)
    assert load_config(file) == config
    assert Config.model_validate(tomllib.loads(file.read_text())) == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"train.epoch": 3}, "unknown name train.epoch; known: .*epochs"),
        ({"trainer.epochs": 3}, "section of data, graph"),
        ({"train.epochs": 0}, "train.epochs = 0"),
        ({"denoiser.name": "mlp"}, "graph.*transformer"),
        ({"denoiser.name": "transformer", "denoiser.conv": "additive"}, "denoiser.conv"),
        ({"flow.prior": "zinb"}, r"flow.prior = 'zinb': a random field has none.*flow.kind=spot"),
        ({"flow.sampler": "heun"}, r"flow.sampler = 'heun': a random field has none"),
        ({"flow.n_sample_steps": 3}, r"flow.n_sample_steps = 3: a random field has none"),
        ({"denoiser.name": "transformer", "flow.kind": "spot"}, r"flow.kind = 'spot'.*\"graph\""),
        ({"flow.prior": "poisson"}, "flow.prior = 'poisson'.*zinb"),
    ],
)
def test_a_wrong_name_or_value_lists_the_right_ones(values, message):
    with pytest.raises(BadConfig, match=message):
        load_config(None, {**ROOTS, **values})


def test_missing_roots_are_named():
    with pytest.raises(
        BadConfig, match="data.source_dataroot is needed; data.embed_dataroot is needed"
    ):
        load_config(None, {})


def test_bad_files_are_refused(tmp_path):
    with pytest.raises(BadInput, match="none.toml"):
        load_config(tmp_path / "none.toml", ROOTS)
    bad = tmp_path / "bad.toml"
    bad.write_text("[train\n")
    with pytest.raises(BadConfig, match="not TOML"):
        load_config(bad, ROOTS)
    bad.write_text("train = 3\n")
    with pytest.raises(BadConfig, match="train"):
        load_config(bad, {**ROOTS, "train.lr": 1.0})


def test_assignments_are_read_as_toml_where_they_are_toml():
    parsed = parse_assignments(["a.b=3", "a.c=1e-3", "a.d=true", "a.e=text", 'a.f=["x", "y"]'])
    assert parsed == {"a.b": 3, "a.c": 1e-3, "a.d": True, "a.e": "text", "a.f": ["x", "y"]}
    with pytest.raises(BadConfig, match="name=value"):
        parse_assignments(["a.b"])
