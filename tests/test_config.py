from __future__ import annotations

import math
import tomllib
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stflow_graph.config import (
    Config,
    DataConfig,
    FlowConfig,
    GraphConfig,
    GraphDenoiserConfig,
    TrainConfig,
    load_config,
    parse_assignments,
    parse_config,
)
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


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=9)
    | st.sampled_from([10**400, "x" * 99_999, "\ud800", "a\0b", "1" * 5000]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=6,
)
RECORDS = {
    "data": DataConfig,
    "graph": GraphConfig,
    "flow": FlowConfig,
    "train": TrainConfig,
}
FIELDS = [
    f"{section}.{name}" for section, record in RECORDS.items() for name in record.model_fields
]
FIELDS += [f"denoiser.{name}" for name in GraphDenoiserConfig.model_fields]
FIELDS += ["denoiser.edge_channels", "denoiser.no", "no.name", "data", "train.", ".", "é.\x1b"]


def config_or_refusal(make: Callable[[], Config]) -> Config | None:
    try:
        config = make()
    except BadConfig as error:
        text = str(error)
        assert len(text) < 1200
        assert text.isprintable()
        return None
    assert isinstance(config, Config)
    return config


@settings(max_examples=400, deadline=None)
@given(name=st.sampled_from(FIELDS), value=JSON, denoiser=st.sampled_from(["graph", "transformer"]))
def test_any_value_of_any_field_is_a_configuration_or_refused(
    tmp_path_factory, name, value, denoiser
):
    values = {**ROOTS, "denoiser.name": denoiser, name: value}
    config = config_or_refusal(lambda: load_config(None, values))
    if config is not None:
        file = tmp_path_factory.getbasetemp() / "any.toml"
        config.save(file)
        assert load_config(file) == config
        numbers = [v for record in config.model_dump().values() for v in record.values()]
        assert all(math.isfinite(v) for v in numbers if isinstance(v, int | float))


@settings(max_examples=200, deadline=None)
@given(content=JSON, section=st.sampled_from([*RECORDS, "denoiser", "no"]))
def test_any_content_of_a_checkpoint_is_a_configuration_or_refused(content, section):
    roots = {"source_dataroot": "a", "embed_dataroot": "b"}
    for values in (content, {"data": roots, section: content}):
        config_or_refusal(lambda values=values: parse_config(values, "config.json"))


def test_values_that_cannot_be_shown_are_refused():
    deep: list = []
    for _ in range(50_000):
        deep = [deep]
    for name in FIELDS:
        for value in (10**5000, -(10**5000), deep, {"a": deep}, {10**5000: deep}):
            for values in ({**ROOTS, name: value}, {**ROOTS, "denoiser.conv_options": value}):
                assert config_or_refusal(lambda values=values: load_config(None, values)) is None
    assert config_or_refusal(lambda: parse_config(deep, "config.json")) is None


DEEP = "[" * 20_000 + "]" * 20_000
HOSTILE = [
    "train.lr=inf",
    "train.lr=nan",
    "train.seed=" + "9" * 10_000,
    "train.members=1000000",
    "denoiser.name=[]",
    "denoiser.name={a=1}",
    "denoiser.context_hops=[1000000]",
    "denoiser.context_hops=" + DEEP,
    "denoiser.context_hops=" + DEEP[:600],
    "data=[[1]]",
    "flow=3",
    "flow.kind=" + "x" * 200_000,
    "a." * 100_000 + "b=1",
    "train." + "a." * 10_000 + "b=1",
    "graph.slack=1e400",
]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: text[:30])
def test_hostile_assignments_and_files_are_refused_in_one_line(tmp_path, text):
    made = config_or_refusal(lambda: load_config(None, {**ROOTS, **parse_assignments([text])}))
    assert made is None
    file = tmp_path / "c.toml"
    for content in (text, text.replace(".", "=", 1), '[data]\nx = """' + text):
        file.write_text(content)
        assert config_or_refusal(lambda: load_config(file, ROOTS)) is None


def test_every_integer_has_an_upper_bound():
    for name in FIELDS:
        section, _, field = name.partition(".")
        record = {**RECORDS, "denoiser": GraphDenoiserConfig}.get(section)
        annotation = record and record.model_fields.get(field) and record.model_fields[field]
        if annotation and annotation.annotation is int:
            with pytest.raises(BadConfig, match="less than or equal to"):
                load_config(None, {**ROOTS, name: 2**63})
