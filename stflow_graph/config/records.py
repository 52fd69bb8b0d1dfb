"""The records of a configuration, their bounds, and the recipe of each denoiser.

Numbers have upper bounds, far above what is of use, so that a slip of the keyboard is refused
instead of running for ever or out of memory. Floats are finite.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

import tomli_w
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from stflow_graph.io.atomic import write_text

MAX_SEED = 2**63 - 1
MAX_MEMBERS = 64
MAX_SAMPLE_STEPS = 10_000


def _writable(text: str) -> str:
    if "\0" in text or any("\ud800" <= c <= "\udfff" for c in text):
        raise ValueError("a character that no file can hold")
    return text


_Text = Annotated[str, Field(max_length=4096), AfterValidator(_writable)]
_Name = Annotated[str, Field(max_length=255), AfterValidator(_writable)]
# of networks' arithmetic, see ``models.precision``
Precision = Literal["float32", "tf32", "bf16"]
_Option = bool | Annotated[int, Field(ge=-(10**6), le=10**6)] | float | _Name


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class DataConfig(_Record):
    """Where the data are and how they are normalised.

    ``standardize``: embeddings to mean 0, deviation 1 per ``"slide"``, over the ``"train"`` slides
    or not at all. ``center_targets``: learn expression minus the slide's mean of each gene, and
    add the training slides' mean at sampling. ``allow_patient_overlap``: train on folds that test
    patients of the training slides. ``gene_aliases``: table of gene names, where the gene list and
    the slides name genes otherwise; ``duplicate_genes``: what becomes of a gene of the list that a
    slide has several times. ``missing_genes``: whether a slide that lacks genes of the list is
    refused, or these genes are masked there, in the loss and in all that is fitted.
    ``allow_patch_size``: train on patches of different physical sizes. ``allow_missing_spots``:
    train on slides of which under half of the measured spots have embeddings.
    """

    source_dataroot: _Text
    embed_dataroot: _Text
    datasets: Annotated[tuple[_Name, ...], Field(max_length=1000)] = ()
    encoder: _Text = "efficientnet_lite0"
    gene_list: _Text = "var_50genes.json"
    target: Literal["log1p", "log1p_normalised"] = "log1p"
    standardize: Literal["center", "slide", "train", "none"] = "center"
    center_targets: bool = True
    allow_patient_overlap: bool = False
    gene_aliases: _Text = ""
    duplicate_genes: Literal["refuse", "sum", "first"] = "refuse"
    missing_genes: Literal["refuse", "mask"] = "refuse"
    allow_patch_size: bool = False
    allow_missing_spots: bool = False


class GraphConfig(_Record):
    """The spatial graph: k, the relative width of the neighbours' cut-off, the k-NN backend."""

    n_neighbors: int = Field(8, ge=1, le=1000)
    slack: float = Field(0.1, gt=0, le=10)
    backend: Literal["auto", "scipy", "grid", "torch-cluster", "torch"] = "auto"


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
    hidden_channels: int = Field(64, ge=1, le=8192)
    n_layers: int = Field(2, ge=1, le=128)
    n_heads: int = Field(4, ge=1, le=512)
    dropout: float = Field(0.3, ge=0, lt=1)
    input_dropout: Annotated[float, Field(ge=0, lt=1)] | Literal["auto"] = "auto"
    context_hops: Annotated[
        tuple[Annotated[int, Field(ge=1, le=1000)], ...], Field(max_length=16)
    ] = (1, 4, 16)
    ridge_rank: int = Field(8, ge=0, le=4096)
    conv: _Name = "additive"
    conv_options: Annotated[dict[_Name, _Option], Field(max_length=64)] = {}
    global_attention: _Name = "latent"


class TransformerDenoiserConfig(_Record):
    """Arguments of ``nn.TransformerDenoiser``, the published model."""

    name: Literal["transformer"] = "transformer"
    hidden_channels: int = Field(128, ge=1, le=8192)
    edge_channels: int = Field(128, ge=1, le=8192)
    n_heads: int = Field(4, ge=1, le=512)
    n_layers: int = Field(4, ge=1, le=128)
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
    n_sample_steps: int = Field(10, ge=1, le=MAX_SAMPLE_STEPS)


class TrainConfig(_Record):
    """The training loop.

    ``members`` denoisers are trained, of three or more slides at most one each, each with its epoch
    chosen on another part of the training slides, and their mean is used. ``regions_per_slide``
    regions are drawn per slide and epoch (more of a slide that is too large for one), each with a
    fraction of the slide's spots between ``smallest_region`` and 1; ``batch_size`` regions make a
    step, of at most ``max_spots_per_batch`` spots, halos apart. With ``smallest_region = 1`` a
    slide that is too large is covered by regions. Training ends after ``patience`` epochs without a
    better validation score. The flow of single spots is trained afterwards, in ``flow_steps`` steps
    of ``flow_spots`` spots. ``precision`` is that of the network's forward and backward pass in the
    loop's steps; weights, losses and all that follows them stay float32. ``warm_start`` is a model
    (a run, fold or checkpoint folder) whose weights the members start from, at a quarter of ``lr``;
    "": from nothing.
    """

    seed: int = Field(0, ge=0, le=MAX_SEED)
    members: int = Field(4, ge=1, le=MAX_MEMBERS)
    epochs: int = Field(80, ge=1, le=1_000_000)
    batch_size: int = Field(1, ge=1, le=10_000)
    regions_per_slide: int = Field(1, ge=1, le=10_000)
    smallest_region: float = Field(1.0, ge=0, le=1)
    max_spots_per_batch: int = Field(8192, ge=2, le=100_000_000)
    lr: float = Field(2e-3, gt=0)
    weight_decay: float = Field(1.0, ge=0)
    clip_norm: float = Field(1.0, gt=0)
    ema_decay: float = Field(0.97, ge=0, lt=1)
    pcc_weight: float = Field(1.0, ge=0)
    patience: int = Field(25, ge=1, le=1_000_000)
    flow_steps: int = Field(200, ge=1, le=1_000_000)
    flow_spots: int = Field(2048, ge=1, le=10_000_000)
    flow_lr: float = Field(3e-3, gt=0)
    folds: (
        Annotated[tuple[Annotated[int, Field(ge=0, le=10_000)], ...], Field(max_length=1000)]
        | Literal["all"]
    ) = ()
    device: _Name = "auto"
    precision: Precision = "float32"
    warm_start: _Text = ""

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
        (
            "data",
            "allow_patient_overlap gene_aliases duplicate_genes missing_genes allow_patch_size "
            "allow_missing_spots",
        ),
        ("denoiser", "denoiser n_layers n_heads hidden_channels"),
        ("graph", "n_neighbors"),
        ("flow", "prior sampler n_sample_steps"),
        ("train", "batch_size max_spots_per_batch epochs lr members seed folds device precision"),
        ("train", "warm_start"),
    )
    for name in names.split()
}
