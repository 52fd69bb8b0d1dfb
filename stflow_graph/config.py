"""Configuration: frozen typed records, TOML in and out, the command line wins over the file.

Values are layered: the recipe of the denoiser chosen, then a TOML file, then what the command line
sets. The resolved result is saved with every run and checkpoint.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from stflow_graph.errors import BadConfig
from stflow_graph.io.atomic import check_file, write_text


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DataConfig(_Record):
    """Where the data are and how they are normalised.

    ``standardize``: embeddings to mean 0, deviation 1 per ``"slide"``, over the ``"train"`` slides
    or not at all. ``center_targets``: learn expression minus the slide's mean of each gene, and
    add the training slides' mean at sampling. ``allow_patient_overlap``: train on folds that test
    patients of the training slides. ``gene_aliases``: table of gene names, where the gene list and
    the slides name genes otherwise; ``duplicate_genes``: what becomes of a gene of the list that a
    slide has several times. ``missing_genes``: whether a slide that lacks genes of the list is
    refused, or these genes are masked there, in the loss and in all that is fitted.
    """

    source_dataroot: str
    embed_dataroot: str
    datasets: tuple[str, ...] = ()
    encoder: str = "efficientnet_lite0"
    gene_list: str = "var_50genes.json"
    target: Literal["log1p", "log1p_normalised"] = "log1p"
    standardize: Literal["center", "slide", "train", "none"] = "center"
    center_targets: bool = True
    allow_patient_overlap: bool = False
    gene_aliases: str = ""
    duplicate_genes: Literal["refuse", "sum", "first"] = "refuse"
    missing_genes: Literal["refuse", "mask"] = "refuse"


class GraphConfig(_Record):
    """The spatial graph: k, the relative width of the neighbours' cut-off, the k-NN backend."""

    n_neighbors: int = Field(8, ge=1)
    slack: float = Field(0.1, gt=0)
    backend: Literal["auto", "scipy", "torch-cluster", "torch"] = "auto"


class GraphDenoiserConfig(_Record):
    """Arguments of ``nn.GraphEncoder``, or of ``nn.GraphDenoiser`` where ``flow.kind = "graph"``.

    ``conv`` is a name in ``nn.conv.CONVS``; ``"module:Name"`` of a layer that follows the contract
    in ``nn.conv``; or ``"pyg:Name"``, a layer of ``torch_geometric.nn`` through
    ``nn.conv.AdaptedConv``. Each is made with ``conv_options``. ``global_attention`` is
    ``"latent"``, ``"none"``, ``"module:Name"`` or ``"pyg:Name"`` of
    ``torch_geometric.nn.attention``. ``input_dropout = "auto"`` is derived in training from the
    best penalty of a ridge regression on the same features, see
    ``training.ridge.choose_input_dropout``. ``ridge_rank`` is of the encoder's ridge head.
    """

    name: Literal["graph"] = "graph"
    hidden_channels: int = Field(64, ge=1)
    n_layers: int = Field(2, ge=1)
    n_heads: int = Field(4, ge=1)
    dropout: float = Field(0.3, ge=0, lt=1)
    input_dropout: Annotated[float, Field(ge=0, lt=1)] | Literal["auto"] = "auto"
    context_hops: tuple[Annotated[int, Field(ge=1)], ...] = (1, 4, 16)
    ridge_rank: int = Field(8, ge=0)
    conv: str = "additive"
    conv_options: dict[str, bool | int | float | str] = {}
    global_attention: str = "latent"


class TransformerDenoiserConfig(_Record):
    """Arguments of ``nn.TransformerDenoiser``, the published model."""

    name: Literal["transformer"] = "transformer"
    hidden_channels: int = Field(128, ge=1)
    edge_channels: int = Field(128, ge=1)
    n_heads: int = Field(4, ge=1)
    n_layers: int = Field(4, ge=1)
    dropout: float = Field(0.2, ge=0, lt=1)
    attn_dropout: float = Field(0.2, ge=0, lt=1)


DenoiserConfig = Annotated[
    GraphDenoiserConfig | TransformerDenoiserConfig, Field(discriminator="name")
]


class FlowConfig(_Record):
    """The flow, its prior, sampler and number of network calls.

    ``kind`` says where samples come from. ``"field"``: messages once a slide, and a random field
    on its graph around the expected expression (``nn.ExpressionField``), which uses none of the
    other settings; ``"spot"``: messages once a slide, and a flow of single spots
    (``nn.SpotFlow``); ``"graph"``: a flow with messages in every step (``nn.GraphDenoiser``, and
    the published transformer); ``"none"``: no samples, a regression.
    """

    kind: Literal["field", "spot", "graph", "none"] = "field"
    prior: Literal["zinb", "gaussian", "zero"] = "gaussian"
    sampler: Literal["euler", "heun", "stflow", "estflow"] = "euler"
    n_sample_steps: int = Field(10, ge=1)


class TrainConfig(_Record):
    """The training loop.

    ``members`` denoisers are trained, each with its epoch chosen on another part of the training
    slides, and their mean is used. ``regions_per_slide`` regions are drawn per slide and epoch
    (more of a slide that is too large for one), each with a fraction of the slide's spots between
    ``smallest_region`` and 1; ``batch_size`` regions make a step, of at most
    ``max_spots_per_batch`` spots, halos apart. With ``smallest_region = 1`` a slide that is too
    large is covered by regions. Training ends after ``patience`` epochs without a better
    validation score. The flow of single spots is trained afterwards, in ``flow_steps`` steps of
    ``flow_spots`` spots.
    """

    seed: int = Field(0, ge=0)
    members: int = Field(4, ge=1)
    epochs: int = Field(80, ge=1)
    batch_size: int = Field(1, ge=1)
    regions_per_slide: int = Field(1, ge=1)
    smallest_region: float = Field(1.0, ge=0, le=1)
    max_spots_per_batch: int = Field(8192, ge=2)
    lr: float = Field(2e-3, gt=0)
    weight_decay: float = Field(1.0, ge=0)
    clip_norm: float = Field(1.0, gt=0)
    ema_decay: float = Field(0.97, ge=0, lt=1)
    pcc_weight: float = Field(1.0, ge=0)
    patience: int = Field(25, ge=1)
    flow_steps: int = Field(200, ge=1)
    flow_spots: int = Field(2048, ge=1)
    flow_lr: float = Field(3e-3, gt=0)
    folds: tuple[int, ...] = ()
    device: str = "auto"

    @property
    def max_region_spots(self) -> int:
        """Maximum number of spots of a region, its halo apart."""
        return max(2, self.max_spots_per_batch // self.batch_size)


class Config(_Record):
    """Everything that decides a training run."""

    data: DataConfig
    graph: GraphConfig = GraphConfig()
    denoiser: DenoiserConfig = GraphDenoiserConfig()
    flow: FlowConfig = FlowConfig()
    train: TrainConfig = TrainConfig()

    @model_validator(mode="after")
    def _transformer_passes_messages(self) -> Self:
        if self.denoiser.name == "transformer" and self.flow.kind != "graph":
            raise ValueError(f'flow.kind = {self.flow.kind!r}: the transformer has "graph" only')
        return self

    @model_validator(mode="after")
    def _field_has_no_flow(self) -> Self:
        for name in ("prior", "sampler", "n_sample_steps"):
            value = getattr(self.flow, name)
            if self.flow.kind == "field" and value != FlowConfig.model_fields[name].default:
                raise ValueError(
                    f"flow.{name} = {value!r}: a random field has none. Fix: --set flow.kind=spot "
                    "or graph for a flow"
                )
        return self

    def save(self, path: str | Path) -> None:
        """Write the configuration as TOML."""
        write_text(path, tomli_w.dumps(self.model_dump(mode="json")))


# the settings of each denoiser, which a file and the command line override
RECIPES: dict[str, dict[str, dict[str, Any]]] = {
    "graph": {},
    "transformer": {  # as published (Huang et al., ICML 2025)
        "data": {"standardize": "none", "center_targets": False},
        "flow": {"kind": "graph", "prior": "zinb", "sampler": "stflow", "n_sample_steps": 4},
        "train": {
            "members": 1,
            "epochs": 60,
            "batch_size": 2,
            "regions_per_slide": 10,
            "smallest_region": 0.0,
            "lr": 5e-4,
            "weight_decay": 0.0,
            "ema_decay": 0.98,
            "pcc_weight": 0.0,
            "patience": 15,
        },
    },
}


# short names of the most frequent settings, for the command line and ``api.train``
OPTIONS = {
    name: f"{section}.{name.replace('denoiser', 'name')}"
    for section, names in (
        ("data", "source_dataroot embed_dataroot datasets encoder gene_list target"),
        ("data", "allow_patient_overlap gene_aliases duplicate_genes missing_genes"),
        ("denoiser", "denoiser n_layers n_heads hidden_channels"),
        ("graph", "n_neighbors"),
        ("flow", "prior sampler n_sample_steps"),
        ("train", "batch_size max_spots_per_batch epochs lr members seed folds device"),
    )
    for name in names.split()
}


def load_config(
    file: str | Path | None = None, overrides: Mapping[str, Any] | None = None
) -> Config:
    """Build a configuration from the denoiser's recipe, a TOML file and overrides.

    Args:
        file: TOML with the sections of :class:`Config`, or None.
        overrides: dotted names to values (``{"train.lr": 1e-3}``); these win.

    Raises:
        BadInput: the file cannot be read.
        BadConfig: not TOML, an unknown name or a value out of range; the message lists both.
    """
    layers: dict[str, dict[str, Any]] = {}
    origin = "command line"
    if file is not None:
        origin = str(file)
        try:
            layers = tomllib.loads(check_file(file).read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise BadConfig(f"{file}: not TOML: {error}") from None
    for name, value in (overrides or {}).items():
        section, _, key = name.partition(".")
        if section not in Config.model_fields or not key:
            sections = ", ".join(Config.model_fields)
            raise BadConfig(f"{name}: expected section.name=value with a section of {sections}")
        table = layers.setdefault(section, {})
        if not isinstance(table, dict):
            raise BadConfig(f"{origin}: [{section}] must be a table")
        table[key] = value
    chosen = layers.get("denoiser", {})
    recipe = RECIPES.get(chosen.get("name", "graph") if isinstance(chosen, dict) else "", {})
    merged = {
        section: {**recipe.get(section, {}), **layers.get(section, {})}
        for section in {*recipe, *layers}
    }
    merged.setdefault("data", {})
    if "denoiser" in merged:
        merged["denoiser"].setdefault("name", "graph")
    return parse_config(merged, origin)


def parse_config(values: Mapping[str, Any], origin: str | Path) -> Config:
    """Validate nested values as a :class:`Config`.

    Raises:
        BadConfig: names each wrong key with what was expected.
    """
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        problems = [_problem(details) for details in error.errors()]
        raise BadConfig(f"{origin}: " + "; ".join(problems)) from None


def _problem(details: Any) -> str:
    place = [str(part) for part in details["loc"]]
    if not place:  # of the configuration as a whole
        return str(details["ctx"]["error"])
    record: Any = Config.model_fields[place[0]].annotation if len(place) > 1 else Config
    if len(place) == 3 and place[0] == "denoiser":
        # the discriminated union puts the denoiser's name into the location
        names = {"graph": GraphDenoiserConfig, "transformer": TransformerDenoiserConfig}
        record = names[place.pop(1)]
    name = ".".join(place)
    if details["type"] == "extra_forbidden":
        return f"unknown name {name}; known: {', '.join(record.model_fields)}"
    if details["type"] == "missing":
        return f"{name} is needed"
    return f"{name} = {details['input']!r}: {details['msg']}"


def parse_assignments(assignments: Sequence[str]) -> dict[str, Any]:
    """Read ``a.b=value`` strings; values as TOML where they are, else as text.

    Raises:
        BadConfig: a string has no ``=``.
    """
    parsed: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise BadConfig(f"{assignment!r}: expected name=value")
        try:
            parsed[name.strip()] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            parsed[name.strip()] = text
    return parsed
