"""Networks that save and load themselves: folders of safetensors and JSON, or the hub."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self, Unpack

from safetensors.torch import save
from torch import Tensor, nn

from stflow_graph.errors import BadConfig, BadInput, as_bad_model, unquoted
from stflow_graph.io.atomic import read_json, sha256, write_bytes, write_json, write_text
from stflow_graph.io.folders import atomic_folder, marked
from stflow_graph.io.pretrained import CONFIG, WEIGHTS, HubOptions, PushOptions, fetch, push
from stflow_graph.io.sealed_json import JSON_SEAL, check_json, seal_json
from stflow_graph.io.state_dict import misfits, read_state_dict

FORMAT = "stflow_graph.network/2"
_CHECKPOINT = "stflow_graph.checkpoint/"
# formats of before config.json had a checksum of its own
UNSEALED_CHECKPOINT = "stflow_graph.checkpoint/4"
_UNSEALED = ("stflow_graph.network/1", UNSEALED_CHECKPOINT)
_OURS = ("format", "network", "sha256", JSON_SEAL)
# what checkpoints and bare networks are saved as, and may be replaced by one another
MODEL_FILES = (
    *(CONFIG, WEIGHTS, "README.md", "normalisation.safetensors", "genes.json"),
    *("calibration.csv", "field.safetensors", "training_range.safetensors"),
)
MODEL_FOLDER = marked(
    "a model's folder", CONFIG, (_CHECKPOINT, "stflow_graph.network/"), MODEL_FILES
)

logger = logging.getLogger(__name__)


def plain_arguments(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a constructor's arguments from its ``locals()``, before it defines others."""
    return {name: value for name, value in values.items() if name not in ("self", "__class__")}


class Pretrained(nn.Module):
    """A network that keeps the arguments it was made with.

    ``config.json`` holds them flat, so that the hub's ``PyTorchModelHubMixin`` reads it too.

    Attributes:
        arguments: of the constructor, by name.
    """

    arguments: dict[str, Any]

    @classmethod
    def make(cls, **arguments: Any) -> Self:
        """Return a network with new weights from its :attr:`arguments`."""
        return cls(**arguments)

    def reset_parameters(self) -> None:
        """Draw new weights."""
        for module in self.modules():
            reset = getattr(module, "reset_parameters", None)
            if module is not self and callable(reset):
                reset()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``config.json``, ``model.safetensors`` and ``README.md`` as a folder.

        Raises:
            BadConfig: the network has a custom layer, which JSON cannot describe.
            BadInput: the path is that of something else than a model's folder.
        """
        kind = type(self).__name__
        functions = [name for name, value in self.arguments.items() if callable(value)]
        if functions:
            raise BadConfig(
                f"{kind}.save_pretrained: {functions[0]} is a function, which JSON lacks"
            )
        with atomic_folder(folder, MODEL_FOLDER) as temporary:
            weights = {key: value.contiguous().cpu() for key, value in self.state_dict().items()}
            write_bytes(temporary / WEIGHTS, save(weights))
            content = {"format": FORMAT, "network": kind, **self.arguments}
            hashes = {WEIGHTS: sha256(temporary / WEIGHTS)}
            write_json(temporary / CONFIG, seal_json({**content, "sha256": hashes}))
            card = _CARD.format(kind=kind, module=type(self).__module__)
            write_text(temporary / "README.md", card)

    @classmethod
    def from_pretrained(
        cls,
        path_or_repo: str | Path,
        *,
        member: int = 0,
        **options: Unpack[HubOptions],
    ) -> Self:
        """Return a network in eval mode, of a folder or a repository of the hub.

        It may be what ``save_pretrained`` wrote, or a trained model (``stflow_graph.SlideModel``,
        a checkpoint folder of ``train``), of which one member is taken, without its scaling.

        Args:
            path_or_repo: see ``io.pretrained.fetch``.
            member: which denoiser of a trained model.
            **options: of the hub, see ``io.pretrained.HubOptions``.

        Raises:
            BadInput: no model there.
            BadModel: damaged files.
            BadConfig: another kind of network, arguments or weights that do not fit.
        """
        folder = fetch(path_or_repo, **options)
        with as_bad_model():
            return cls._read(folder, member, path_or_repo)

    @classmethod
    def _read(cls, folder: Path, member: int, origin: str | Path) -> Self:
        file, content = folder / CONFIG, read_json(folder / CONFIG)
        if not isinstance(content, dict):
            raise BadConfig(f"{file}: found {type(content).__name__}, expected an object")
        check_sealed(content, file)
        n_members = 1
        if str(content.get("format", "")).startswith(_CHECKPOINT):
            content, n_members = _of_member(cls.__name__, content, file, member, origin)
        kind = content.get("network", cls.__name__)
        if kind != cls.__name__:
            raise BadConfig(f"{file}: found a {kind}, expected a {cls.__name__}")
        arguments = {name: value for name, value in content.items() if name not in _OURS}
        try:
            network = cls.make(**arguments)
        except (TypeError, ValueError) as error:
            raise BadConfig(f"{file}: not the arguments of {kind}: {error}") from None
        expected = content.get("sha256", {}).get(WEIGHTS)
        if expected is not None and sha256(folder / WEIGHTS) != expected:
            raise BadInput(
                folder / WEIGHTS, "sha256", unquoted("another hash"), f"the one in {CONFIG}"
            )
        weights = weights_of_member(read_state_dict(folder / WEIGHTS), n_members, member)
        try:
            network.load_state_dict(weights)
        except RuntimeError:
            problems = misfits(network.state_dict(), weights)
            raise BadConfig(
                f"{folder / WEIGHTS}: weights do not fit {CONFIG}: {problems}"
            ) from None
        return network.eval()

    def push_to_hub(self, repo_id: str, **options: Unpack[PushOptions]) -> str:
        """Send what ``save_pretrained`` writes to the hub; see ``io.pretrained.push``."""
        return push(self.save_pretrained, repo_id, **options)


def check_sealed(content: Mapping[str, Any], file: Path) -> None:
    """Check that a model's ``config.json``, if its format has a checksum, is as it was written.

    Raises:
        BadInput: it was changed.
    """
    form = str(content.get("format", ""))
    sealed = form.startswith("stflow_graph.") and form not in _UNSEALED
    check_json(content, file, required=sealed)


def _of_member(
    kind: str, content: dict[str, Any], file: Path, member: int, origin: str | Path
) -> tuple[dict[str, Any], int]:
    """Return a checkpoint's description of its network, and the number of members."""
    n_members = int(content.get("n_members", 1))
    loader = f"SlideModel.from_pretrained({str(origin)!r})"
    if not isinstance(content.get("arguments"), dict):
        raise BadConfig(
            f"{file}: a trained model whose network cannot be made from arguments alone. "
            f"Fix: {loader}"
        )
    if not 0 <= member < n_members:
        raise BadConfig(f"{file}: member {member}: expected one of 0 to {n_members - 1}")
    logger.info("%s: member %d of %d; %s has all", file.parent, member, n_members, loader)
    flat = {**content["arguments"], "network": content.get("network", kind)}
    return {**flat, "sha256": content.get("sha256", {})}, n_members


def join_weights(members: Sequence[nn.Module]) -> dict[str, Tensor]:
    """Return the state dicts of one or several networks as one, on the CPU."""
    return {
        (f"members.{i}.{key}" if len(members) > 1 else key): value.cpu()
        for i, member in enumerate(members)
        for key, value in member.state_dict().items()
    }


def weights_of_member(
    weights: Mapping[str, Tensor], n_members: int, member: int
) -> dict[str, Tensor]:
    """Return the state dict of one network from what :func:`join_weights` returned."""
    if n_members == 1:
        return dict(weights)
    prefix = f"members.{member}."
    return {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}


_CARD = """---
library_name: stflow_graph
pipeline_tag: graph-ml
tags:
- spatial-transcriptomics
- pytorch_model_hub_mixin
---

# {kind}

The bare network: it takes scaled embeddings and gives scaled expression.

```python
from {module} import {kind}
model = {kind}.from_pretrained("OWNER/NAME")
y_1 = model(y_t, t, data)
```
"""
