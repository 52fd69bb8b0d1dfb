"""How predictions were made, from their provenance: the model, the settings, the command."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

_SHORT = 8  # digits of a hash
_MAX_NAMED = 12  # slides


class _Made(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def provenance(self) -> Mapping[str, Any]: ...


class Origin(NamedTuple):
    """What slides have in common that were predicted in the same way.

    Attributes:
        slides: their names.
        rows: names and values for display.
        command: that predicts them again; "" of those that ``sample`` predicted.
    """

    slides: str
    rows: dict[str, str]
    command: str


def origins_of(slides: Sequence[_Made]) -> list[Origin]:
    """Return the ways in which slides were predicted, the first slide's first."""
    groups: dict[tuple[tuple[tuple[str, str], ...], str], list[str]] = {}
    for slide in slides:
        stored = slide.provenance
        way = tuple(_rows(stored).items()), _options(stored)
        groups.setdefault(way, []).append(slide.name)
    return [
        Origin(_named(names), dict(rows), _command(names, options))
        for (rows, options), names in groups.items()
    ]


def _rows(stored: Mapping[str, Any]) -> dict[str, str]:
    which = "all slides" if stored.get("fold") is None else f"fold {stored['fold']}"
    dataset = stored.get("dataset") or "unknown slides"
    rows = {
        "model": f"{stored.get('denoiser')} of {dataset}, {which}",
        "checkpoint": str(stored.get("checkpoint_sha256") or "unknown")[:_SHORT],
        "protocol": stored.get("protocol"),
        "encoder": stored.get("encoder"),
        "spots": _spots(stored),
        "samples": stored.get("n_samples"),
        "seed": stored.get("seed"),
        "versions": f"stflow_graph {stored.get('version')}, torch {stored.get('torch')}",
        "device": stored.get("device"),
    }
    return {name: str(value) for name, value in rows.items() if value is not None}


def _spots(stored: Mapping[str, Any]) -> str | None:
    grid, patch = stored.get("grid"), stored.get("patch_um")
    if not isinstance(patch, int | float):
        return None
    patches = f"patches of {patch:.4g} µm"
    if not isinstance(grid, Mapping):
        return f"of a table, {patches}"
    return f"{grid.get('layout')} grid, {_short(grid.get('pitch_um'))} µm apart, {patches}"


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else str(value)


def _options(stored: Mapping[str, Any]) -> str:
    """Return the options that predict a slide in this way; "" where ``predict`` did not."""
    if "patch_um" not in stored:
        return ""
    grid = stored.get("grid")
    grid = grid if isinstance(grid, Mapping) else {}
    genes = stored.get("genes")
    values = {
        "--um-per-px": stored.get("um_per_px_given"),
        "--spots": None if grid else "TABLE",
        "--pitch-um": grid.get("pitch_um"),
        "--layout": grid.get("layout"),
        "--min-tissue": grid.get("min_tissue"),
        "--genes": ",".join(map(str, genes)) if isinstance(genes, list) else None,
        "--n-samples": stored.get("n_samples"),
        "--seed": stored.get("seed"),
        "--fold": stored.get("fold"),
    }
    defaults = {"--layout": "hexagonal", "--min-tissue": 0.25, "--n-samples": 1, "--seed": 0}
    words = [
        f"{name} {shlex.quote(_word(value))}"
        for name, value in values.items()
        if value is not None and value != defaults.get(name)
    ]
    return " ".join(["--model RUN --out OUT", *words])


def _word(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _command(names: Sequence[str], options: str) -> str:
    slides = "IMAGES" if len(names) > 1 else "IMAGE"
    return f"stflow-graph predict {slides} {options}" if options else ""


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return ", ".join(names[:_MAX_NAMED]) + more
