"""What computes embeddings: an encoder on a device in a precision, by torch or ONNX Runtime."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stflow_graph.encoders import Encoder
from stflow_graph.encoders.onnx_runtime import PACKAGES, compiled, is_faster, is_installed
from stflow_graph.errors import BadConfig, MissingDependency

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
ENGINES = ("auto", "torch", "onnx")
# patches of a command for which the export, which takes some ten seconds, pays
_MIN_FOR_ONNX = 1000
_MIN_PART = 8  # patches that a CPU computes together, so that its caches hold the activations


@dataclasses.dataclass(frozen=True)
class EmbedSettings:
    """How to embed.

    Attributes:
        batch_size: patches per batch.
        device: device of the encoder.
        precision: ``"auto"``, ``"fp32"``, ``"bf16"`` or ``"fp16"``.
        workers: processes that read ahead; 0 reads in a thread, enough on a CPU.
        engine: ``"torch"``, ``"onnx"`` (ONNX Runtime, on CPUs in fp32), or ``"auto"``: ONNX Runtime
            where it is installed and pays, that is for CNNs and 1,000 patches or more.
    """

    batch_size: int = 64
    device: str = "cpu"
    precision: str = "auto"
    workers: int = 0
    engine: str = "auto"

    def dtype(self) -> torch.dtype | None:
        """Return the type of autocast, None for float32.

        Raises:
            BadConfig: an unknown precision.
        """
        if self.precision not in PRECISIONS:
            raise BadConfig(f"precision {self.precision!r}: expected {', '.join(PRECISIONS)}")
        if self.precision == "auto":
            if torch.device(self.device).type != "cuda":
                return None
            return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
        return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[self.precision]

    def uses_onnx(self, encoder: Encoder, count: Callable[[], int]) -> bool:
        """Return whether ONNX Runtime computes the embeddings.

        Args:
            encoder: the patch encoder.
            count: returns about how many patches there will be; called if that matters.

        Raises:
            BadConfig: an unknown engine, or ONNX Runtime off the CPU or in another precision.
            MissingDependency: ONNX Runtime is requested and not installed.
        """
        if self.engine not in ENGINES:
            raise BadConfig(f"engine {self.engine!r}: expected {', '.join(ENGINES)}")
        fits = torch.device(self.device).type == "cpu" and self.dtype() is None
        if self.engine == "auto":
            return fits and is_installed() and is_faster(encoder) and count() >= _MIN_FOR_ONNX
        if self.engine == "onnx":
            if not fits:
                raise BadConfig(
                    f"engine 'onnx': computes on CPUs in fp32, not on {self.device} in "
                    f"{self.precision}"
                )
            if not is_installed():
                needs = ", ".join(PACKAGES)
                raise MissingDependency(
                    f"engine 'onnx': needs {needs}. Fix: pip install 'stflow-graph[onnx]'"
                )
        return self.engine == "onnx"


DEFAULT_SETTINGS = EmbedSettings()


class Engine:
    """Computes embeddings of batches of patches.

    Args:
        encoder: the patch encoder, which is moved to the device.
        settings: device, precision, engine.
        count: returns about how many patches there will be; called if that matters.

    Raises:
        BadConfig: settings that do not go together.
        MissingDependency: ONNX Runtime is requested and not installed.
    """

    def __init__(self, encoder: Encoder, settings: EmbedSettings, count: Callable[[], int]) -> None:
        self.encoder, self.dtype = encoder, settings.dtype()
        self.device = torch.device(settings.device)
        self._wants_onnx = settings.uses_onnx(encoder, count)
        self._run: Callable[[Tensor], Tensor] = encoder
        n_parts = 1
        if self.device.type == "cpu":
            n_parts = math.ceil(settings.batch_size / max(_MIN_PART, torch.get_num_threads()))
        self._part = math.ceil(settings.batch_size / n_parts)
        encoder.to(self.device)

    @property
    def name(self) -> str:
        """What computes, with its version."""
        if self._run is self.encoder:
            return f"torch {torch.__version__}"
        return f"onnxruntime {version('onnxruntime')}"

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Return the embeddings ``[B, F]`` float32 of patches ``[B, P, P, 3]`` uint8.

        Raises:
            BadConfig: the encoder gave another width than it states.
        """
        tensor = torch.from_numpy(images).to(self.device, non_blocking=True)
        return self.embed_tensor(tensor).cpu().numpy()

    def embed_tensor(self, images: Tensor) -> Tensor:
        """Return the embeddings of patches on the device, there, float32; as :meth:`__call__`."""
        encoder = self.encoder
        autocast: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
        if self.dtype is not None:
            autocast = torch.autocast(self.device.type, self.dtype)
        with torch.inference_mode(), autocast:
            if self._wants_onnx:
                run = compiled(encoder, images[: self._part], self._part)
                self._run, self._wants_onnx = run or encoder, False
            x = torch.cat([self._run(part) for part in images.split(self._part)])
        if x.shape[1:] != (encoder.width,):
            raise BadConfig(
                f"encoder {encoder.name!r} gave {list(x.shape)}, expected [B, {encoder.width}]"
            )
        return x.float()
