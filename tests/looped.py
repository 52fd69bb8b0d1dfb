"""A network and the slides that its training loop reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from linear import linear_slide, new_network, prepared, scaling_of

from stflow_graph.config import Config
from stflow_graph.training.loop import Fitted, fit, validation_score

STREAM = 3
NO_DROPOUT = {"denoiser__dropout": 0.0, "denoiser__input_dropout": 0.0}
TRANSFORMER_NO_DROPOUT = {"denoiser__dropout": 0.0, "denoiser__attn_dropout": 0.0}


class Loop:
    """A network and slides to fit it to: A, B, C to learn from, D and E held out."""

    def __init__(self, config: Config, sizes: tuple[int, ...] = (20, 16, 12)) -> None:
        slides = [linear_slide(name, n) for name, n in zip("ABC", sizes, strict=True)]
        self.config, self.scaling = config, scaling_of(slides, config)
        self.learn = [prepared(slide, config, self.scaling).data for slide in slides]
        held_out = (linear_slide("D", 15), linear_slide("E", 10))
        self.validate = [prepared(slide, config, self.scaling) for slide in held_out]
        self.network: Any = new_network(config)

    def fit(self, folder: Path, **options: Any) -> Fitted:
        arguments = {"stream": STREAM, "state_file": folder / "state.safetensors", **options}
        return fit(self.network, self.learn, self.validate, self.config, self.scaling, **arguments)

    def score(self, weights: dict[str, torch.Tensor], seed: int = STREAM) -> tuple[float, float]:
        """Return the validation score of a new network with these weights."""
        network = new_network(self.config, seed=99)
        network.load_state_dict(weights)
        return validation_score(network, self.validate, self.config, self.scaling, seed)
