"""Where an encoder's weights are on this machine, found without torch and without a network."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Iterator
from pathlib import Path

from stflow_graph.encoders.entry import EncoderEntry
from stflow_graph.errors import BadInput, unquoted


@dataclasses.dataclass(frozen=True)
class Found:
    """A weights file and what it was found in: ``weights root``, ``hub cache`` or ``package``."""

    path: Path
    where: str


def find_weights(entry: EncoderEntry, root: str | Path | None = None) -> Found | None:
    """Find an encoder's weights under a weights root, else in the hub's cache, else in a package.

    Args:
        entry: the encoder.
        root: a folder with ``<name or alias>/<file>``, or None.

    Returns:
        None if they are in none of these.

    Raises:
        BadInput: the weights root is not a folder.
    """
    if root is not None:
        if not Path(root).is_dir():
            raise BadInput(
                root, "weights root", unquoted("no folder"), "a folder of <encoder>/<file>"
            )
        for folder in (entry.name, *entry.aliases):
            for file in entry.files:
                path = Path(root) / folder / file
                if path.is_file():
                    return Found(path, "weights root")
    cached = next(_cached(entry), None)
    if cached is not None:
        return Found(cached, "hub cache")
    if entry.package is not None:
        package = importlib.util.find_spec(entry.package.replace("-", "_"))
        folders = package.submodule_search_locations if package else None
        for path in sorted(p for f in folders or () for p in Path(f).glob("models/*.pth")):
            return Found(path, "package")
    return None


def _cached(entry: EncoderEntry) -> Iterator[Path]:
    """Yield an encoder's files in the hub's cache, the revision ``main`` first.

    The layout is the documented one, ``models--<owner>--<name>/snapshots/<revision>/<file>``. The
    hub takes repository names in any case (TRIDENT asks for ``MahmoodLab/uni``), the cache keeps
    the case that was asked for.
    """
    from huggingface_hub import constants  # cheap, unlike the hub's client

    cache = Path(constants.HF_HUB_CACHE)
    if entry.hub is None or not cache.is_dir():
        return
    wanted = f"{entry.hub_kind}s--{entry.hub.replace('/', '--')}".lower()
    for repository in sorted(p for p in cache.iterdir() if p.name.lower() == wanted):
        main = repository / "refs" / "main"
        first = main.read_text().strip() if main.is_file() else ""
        snapshots = sorted((repository / "snapshots").glob("*"), key=lambda p: p.name != first)
        for snapshot in snapshots:
            for file in entry.files:
                path = snapshot / entry.hub_folder / file
                if path.is_file():
                    yield path
