"""Spatial gene expression from H&E slides by flow matching on a graph of spots.

``stflow_graph.api`` has the stages for notebooks. The names here are imported when first used, so
that ``import stflow_graph`` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from stflow_graph.version import __version__

if TYPE_CHECKING:
    from stflow_graph.data.slide import Slide
    from stflow_graph.inference.slide_model import SlideModel
    from stflow_graph.nn.denoiser import GraphDenoiser
    from stflow_graph.nn.two_stage import TwoStageDenoiser

__all__ = ["GraphDenoiser", "Slide", "SlideModel", "TwoStageDenoiser", "__version__"]

_PLACES = {
    "GraphDenoiser": "nn.denoiser",
    "Slide": "data.slide",
    "SlideModel": "inference.slide_model",
    "TwoStageDenoiser": "nn.two_stage",
}


def __getattr__(name: str) -> object:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
