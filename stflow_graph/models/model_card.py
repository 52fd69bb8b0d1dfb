"""The model card of a trained model: data, scores, limits, licences, and how to use it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stflow_graph.config import Config
from stflow_graph.encoders import ENCODERS
from stflow_graph.models.build import custom_code

_USE = """
## How to use

```python
from stflow_graph import Slide, SlideModel
model = SlideModel.from_pretrained("OWNER/NAME"{allow})  # or this folder
slide = Slide.from_hest("ROOT", "SLIDE", embed_dataroot="EMB", encoder={encoder})
prediction = model.predict(slide)  # an AnnData: spots x genes, {target}
```

Or `stflow-graph sample FOLDER EMBEDDINGS --out PREDICTIONS{option}`.
Embeddings must come from the encoder named above, of patches of the same size in µm as in training.
"""
_LIMITS = """
## Intended use and limits

For research only, not for diagnosis. The model covers the genes, tissue, stain and scanner of its
training slides; predictions for slides of another laboratory may be worse. The validation score is
optimistic, as held-out training slides chose the epoch. Check the score of each gene before relying
on it.
"""


def model_card(
    config: Config,
    genes: Sequence[str],
    in_channels: int,
    n_members: int,
    provenance: Mapping[str, Any],
    pearson: np.ndarray | None,
    licence: str | None = None,
) -> str:
    """Return the Markdown of ``README.md``, with the metadata that the hub reads at its head.

    Args:
        config: of the training run.
        genes: G names.
        in_channels: channels of the embeddings.
        n_members: ensemble size.
        provenance: of the data and of the training.
        pearson: ``[G]`` PCC of each gene on held-out training slides, None if unknown.
        licence: of the weights, as the hub spells it; None leaves it to be named.
    """
    where = "" if provenance.get("fold") is None else f", fold {provenance['fold']}"
    data = provenance.get("dataset")
    trained = f" of {_cell(data)}{where}" if data else ""
    return (
        _metadata(config, licence)
        + f"# {config.denoiser.name} denoiser{trained}\n\n"
        + "Predicts log expression of spots from embeddings of H&E patches.\n\n"
        + _table(config, genes, in_channels, n_members, provenance)
        + _use(config)
        + _LIMITS
        + _trust(genes, pearson)
        + _licences(config.data.encoder, licence)
    )


def _use(config: Config) -> str:
    code = custom_code(config)
    text = _USE.format(
        encoder=json.dumps(config.data.encoder),
        target=config.data.target,
        allow=", allow_code=True" if code else "",
        option=" --allow-code" if code else "",
    )
    if code:
        names = ", ".join(_cell(name) for name in code.values())
        text += f"\nIt needs code that this folder does not hold: {names}.\n"
    return text


def _metadata(config: Config, licence: str | None) -> str:
    tags = ["spatial-transcriptomics", "gene-expression", "histology", "pathology"]
    tags += ["flow-matching"] if config.flow.kind in ("spot", "graph") else []
    tags += [f"encoder:{config.data.encoder}"]
    lines = ["library_name: stflow_graph", "pipeline_tag: graph-ml"]
    lines += [f"license: {json.dumps(licence)}"] if licence else []
    lines += ["metrics:", "- pearsonr", "tags:", *(f"- {json.dumps(tag)}" for tag in tags)]
    return "\n".join(["---", *lines, "---", "", ""])


def _table(
    config: Config,
    genes: Sequence[str],
    in_channels: int,
    n_members: int,
    provenance: Mapping[str, Any],
) -> str:
    score = provenance.get("validation_pearson")
    slides = [str(name) for name in provenance.get("train_slides") or []]
    gene_list = provenance.get("gene_list") or config.data.gene_list or "custom list"
    rows = {
        "protocol": provenance.get("protocol") or "unknown",
        "denoiser": config.denoiser.name,
        "encoder": f"{config.data.encoder or 'unknown'} ({in_channels} channels)",
        "target": config.data.target,
        "genes": f"{len(genes)} ({gene_list})",
        **_missing(provenance.get("missing_genes")),
        "trained on": ", ".join(slides) or "unknown",
        **_before(provenance.get("warm_start")),
        "never seen in training": _tested(provenance.get("test_slides")),
        "validation PCC": "none" if score is None else f"{score:.3f}",
        "members": n_members,
        "seed": config.train.seed,
        "version": provenance.get("version"),
    }
    body = "\n".join(f"| {key} | {_cell(value)} |" for key, value in rows.items())
    return f"| | |\n|---|---|\n{body}\n"


def _tested(slides: Any) -> str:
    if not isinstance(slides, list):
        return "unknown"
    names = ", ".join(map(str, slides))
    return names or "none: a model of all slides, of which each member has held out some"


def _missing(slides: Any) -> dict[str, str]:
    """Return the row on training slides that lack genes, if there are any."""
    if not isinstance(slides, dict) or not slides:
        return {}
    lacking = ", ".join(f"{number} in {name}" for name, number in slides.items())
    return {"genes not measured, masked": lacking}


def _before(start: Any) -> dict[str, str]:
    """Return the row on what was trained on before, if the model started from another."""
    if not isinstance(start, dict):
        return {}
    slides = [str(name) for name in start.get("train_slides") or []]
    return {"trained on before": ", ".join(slides) or "unknown"}


def _cell(value: object) -> str:
    """Return a value that breaks neither the table nor the page."""
    text = " ".join(str(value).split())
    return "".join(f"\\{c}" if c in r"\|<>[]`" else c for c in text)


def _trust(genes: Sequence[str], pearson: np.ndarray | None) -> str:
    """Return a section on the genes predicted best and worst on held-out slides."""
    if pearson is None:
        return ""
    order = [i for i in np.argsort(-pearson, kind="stable") if np.isfinite(pearson[i])]
    if not order:
        return ""
    best, worst = (
        ", ".join(f"{_cell(genes[i])} {pearson[i]:.2f}" for i in part)
        for part in (order[:5], order[-5:])
    )
    return (
        "\n## Expected accuracy per gene\n\n"
        "PCC on training slides that the predicting member had not seen; all genes are in\n"
        f"`calibration.csv`. Best: {best}. Worst: {worst}.\n"
    )


def _licences(encoder: str, licence: str | None) -> str:
    weights = licence or "to be stated by the publisher"
    entry = ENCODERS.get(encoder)
    terms = "see the page of its weights; many pathology encoders allow research only"
    if entry is not None:
        terms = f"{entry.licence}, {entry.page}"
    return (
        f"\n## Licences\n\nThese weights: {weights}.\n"
        f"The encoder {_cell(encoder)}, which is not part of this folder: {terms}.\n"
        "The terms of the training slides and of the encoder apply to models trained on them.\n"
    )
