"""An encoder's forward pass on CPUs by ONNX Runtime, for CNNs in a fraction of torch's time."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from stflow_graph.encoders.encoder import Encoder

PACKAGES = ("onnx", "onnxruntime", "onnxscript")
# of torch's embeddings of the first patches, relative to their length; rounding gives 1e-6
_MAX_DIFFERENCE = 1e-3

logger = logging.getLogger(__name__)


def is_installed() -> bool:
    """Return whether the packages of the extra ``onnx`` are there."""
    return all(importlib.util.find_spec(name) is not None for name in PACKAGES)


def is_faster(encoder: Encoder) -> bool:
    """Return whether ONNX Runtime pays: for networks with batch normalisation, that is for CNNs.

    It joins that with the convolutions before it; transformers take as long in torch.
    """
    return any(isinstance(module, nn.BatchNorm2d) for module in encoder.network.modules())


def compiled(encoder: Encoder, images: Tensor, size: int) -> Callable[[Tensor], Tensor] | None:
    """Return an encoder's forward pass by ONNX Runtime, if it gives the same embeddings.

    Args:
        encoder: on the CPU.
        images: ``[B, P, P, 3]`` uint8, some patches to compare with torch, at most ``size``.
        size: maximum number of patches at a time; so many are always computed.

    Returns:
        A function of patches like ``images`` that returns ``[B, F]`` float32; None, and one line
        in the log, if the network cannot be exported, or its embeddings differ.
    """
    try:
        run = _session(encoder, images, size)
        x, expected = run(images), encoder(images)
        difference = float(((x - expected).norm(dim=1) / expected.norm(dim=1)).max())
    except Exception as error:  # of the exporter, of any type
        reason = next(iter(str(error).splitlines()), "no reason stated")
        logger.warning("%s: ONNX Runtime is not used: %s", encoder.name, reason)
        return None
    if not difference <= _MAX_DIFFERENCE:
        logger.warning(
            "%s: ONNX Runtime is not used: its embeddings differ from torch's by %.1g of their "
            "length",
            encoder.name,
            difference,
        )
        return None
    return run


class _Transformed(nn.Module):
    """An encoder without its transform, as the exporter takes modules only."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder.embed_transformed(x)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep what the exporter prints and logs, pages if it fails, from the terminal."""
    hidden, before = io.StringIO(), logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(hidden),
            contextlib.redirect_stderr(hidden),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _session(encoder: Encoder, images: Tensor, size: int) -> Callable[[Tensor], Tensor]:
    import onnxruntime

    # a size that varies would make the export take three times as long
    example = encoder.transform(images[:1].expand(size, -1, -1, -1))
    with _silence():
        graph = torch.export.export(_Transformed(encoder).eval(), (example,))
        program = torch.onnx.export(graph, dynamo=True)
    assert program is not None
    model = program.model_proto.SerializeToString()
    options: Any = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    if os.environ.get("OMP_WAIT_POLICY", "").upper() == "PASSIVE":
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session: Any = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def run(images: Tensor) -> Tensor:
        x = example.new_zeros(example.shape)
        x[: len(images)] = encoder.transform(images)
        return torch.from_numpy(session.run(None, {name: x.numpy()})[0][: len(images)])

    return run
