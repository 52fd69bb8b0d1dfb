"""The doctor stage: what this installation, this machine and a folder can do."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.metadata
import os
import platform
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import torch

from stflow_graph.data.splits import find_datasets
from stflow_graph.encoders.catalogue import ENCODERS, entry_of
from stflow_graph.encoders.torchvision_shim import import_timm
from stflow_graph.encoders.weights_file import find_weights
from stflow_graph.errors import BadInput, MissingDependency, StorageFailed, reason_of, unquoted
from stflow_graph.io.patches import open_patches
from stflow_graph.io.process import available_cores, available_memory
from stflow_graph.io.renames import sync, sync_folder
from stflow_graph.io.temporaries import remove, temporary_beside
from stflow_graph.version import __version__

_DISTRIBUTION = "stflow-graph"
# packages of which a part is compiled, and so can be there and fail
_COMPILED = ("torch", "torch_geometric", "h5py", "scipy", "sklearn", "safetensors", "zarr")
_DEVELOPMENT = "dev"
_PROBE = b"\0" * 2**20
_BYTES_OF_NUMBER = 4

State = Literal["ok", "absent", "failed"]


@dataclasses.dataclass(frozen=True)
class Check:
    """What was looked at and what it is like.

    Attributes:
        subject: what.
        state: "absent" is what is optional and not there.
        found: for display.
        fix: what to do where it failed or is absent, or "".
        exit_code: of the command if this failed.
    """

    subject: str
    state: State
    found: str
    fix: str = ""
    exit_code: int = MissingDependency.exit_code


def examine(
    folder: str | Path,
    *,
    weights_root: str | Path | None = None,
    source_dataroot: str | Path | None = None,
    encoder: str = "efficientnet_lite0",
) -> list[Check]:
    """Return what works and what does not; nothing is left behind.

    Args:
        folder: where results are to be written; it is tested by writing there.
        weights_root: folder of encoder weights.
        source_dataroot: a data set whose embeddings are to be made, and their size estimated.
        encoder: of these.

    Raises:
        BadConfig: an unknown encoder.
        BadInput: the folder, weights root or data set does not exist.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise BadInput(folder, "folder", unquoted("no folder"), "a folder to write results to")
    size = None if source_dataroot is None else _embeddings(Path(source_dataroot), encoder)
    return [
        *_packages(),
        *_extras(),
        *_machine(),
        *_weights(weights_root),
        _writing(folder),
        _space(folder, size),
    ]


def _packages() -> Iterator[Check]:
    yield Check("stflow_graph", "ok", f"{__version__}, Python {platform.python_version()}")
    for name in (*_COMPILED, "timm"):
        try:
            module = import_timm() if name == "timm" else importlib.import_module(name)
        except Exception as error:  # of an extension that does not fit, any class
            yield Check(name, "failed", _first_line(error), f"install {name} again")
        else:
            yield Check(name, "ok", str(getattr(module, "__version__", "version unknown")))


def _extras() -> Iterator[Check]:
    """Yield the optional parts, by the extras of the distribution."""
    try:
        required = importlib.metadata.requires(_DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        yield Check("extras", "absent", "run from a source tree that is not installed")
        return
    of_extra: dict[str, list[str]] = {}
    for line in required:
        mark = re.search(r"""extra == ["']([\w-]+)["']""", line)
        if mark and mark[1] != _DEVELOPMENT:
            of_extra.setdefault(mark[1], []).append(re.split(r"[^\w.-]", line)[0])
    for extra, names in of_extra.items():
        versions = {name: _version(name) for name in names}
        missing = [name for name, version in versions.items() if version is None]
        subject = f"extra {extra}"
        if missing:
            fix = f"pip install 'stflow-graph[{extra}]'"
            yield Check(subject, "absent", f"no {', '.join(missing)}", fix)
        else:
            listed = ", ".join(f"{name} {version}" for name, version in versions.items())
            yield Check(subject, "ok", listed)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _machine() -> Iterator[Check]:
    cores = available_cores()
    memory = available_memory()
    amount = "" if memory is None else f", {_size(memory)} of memory available"
    yield Check("processor", "ok", f"{cores} cores{amount}")
    names = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY")
    settings = ", ".join(f"{name}={os.environ.get(name, 'unset')}" for name in names)
    yield Check("threads", "ok", f"{torch.get_num_threads()} of torch; {settings}")
    if not torch.cuda.is_available():
        built = "torch is built without CUDA" if torch.version.cuda is None else "no GPU is found"
        yield Check("GPU", "absent", f"{built}; everything runs on the CPU")
    for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        yield _gpu(number)


def _gpu(number: int) -> Check:
    subject = f"cuda:{number}"
    try:
        free, total = torch.cuda.mem_get_info(number)
        twice = torch.ones(2, device=subject) * 2
        assert twice.sum().item() == 4
    except Exception as error:  # of drivers, any class
        return Check(subject, "failed", _first_line(error), "check the driver with nvidia-smi")
    name = torch.cuda.get_device_name(number)
    return Check(subject, "ok", f"{name}, {_size(free)} of {_size(total)} free")


def _weights(root: str | Path | None) -> Iterator[Check]:
    places = {name: find_weights(entry, root) for name, entry in ENCODERS.items()}
    there = [f"{name} ({place.origin})" for name, place in places.items() if place]
    fix = "stflow-graph encoders NAME says where weights belong"
    if there:
        yield Check("encoder weights", "ok", ", ".join(there))
    else:
        yield Check("encoder weights", "absent", f"none of {len(places)} encoders", fix)


def _writing(folder: Path) -> Check:
    """Try what every output needs: write, sync, rename; locks need no more, see ``io.locks``."""
    temporary, renamed = (temporary_beside(folder / name) for name in ("doctor", "renamed"))
    steps: dict[str, Callable[[], object]] = {
        "write": functools.partial(temporary.write_bytes, _PROBE),
        "fsync": functools.partial(sync, temporary),
        "rename": functools.partial(os.replace, temporary, renamed),
        "fsync of the folder": functools.partial(sync_folder, folder),
    }
    subject = f"writing in {folder}"
    try:
        for name, step in steps.items():
            try:
                step()
            except OSError as error:
                found = f"{name}: {error.strerror or error}"
                fix = "write results to another disk"
                return Check(subject, "failed", found, fix, StorageFailed.exit_code)
        return Check(subject, "ok", ", ".join(steps))
    finally:
        for path in (temporary, renamed):
            remove(path)


def _embeddings(root: Path, encoder: str) -> int:
    """Return the bytes that the embeddings of all patches take."""
    width = entry_of(encoder).width
    n_patches = 0
    for dataset in find_datasets(root):
        for file in sorted((dataset.path / "patches").glob("*.h5")):
            with open_patches(file) as patches:
                n_patches += len(patches)
    return n_patches * width * _BYTES_OF_NUMBER


def _space(folder: Path, needed: int | None) -> Check:
    free = shutil.disk_usage(folder).free
    found = f"{_size(free)} free"
    if needed is not None:
        found += f", {_size(needed)} needed for the embeddings"
    if needed is not None and needed > free:
        fix = "choose another disk for the embeddings"
        return Check("disk", "failed", found, fix, StorageFailed.exit_code)
    return Check("disk", "ok", found)


def _size(n_bytes: float) -> str:
    units = ("B", "kB", "MB", "GB", "TB")
    power = sum(n_bytes >= 1000**p for p in range(1, len(units)))
    return f"{n_bytes / 1000**power:.3g} {units[power]}"


def _first_line(error: Exception) -> str:
    text = str(error).strip() or reason_of(error)
    return text.splitlines()[0][:200]
