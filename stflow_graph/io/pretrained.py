"""Folders of trained models: local, in the hub's cache, or on the hub."""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypedDict, Unpack

from stflow_graph.errors import BadInput, unquoted
from stflow_graph.io.hub_errors import hub_errors

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
# nothing else is fetched or sent, in particular no pickles
_PATTERNS = ["*.safetensors", "*.json", "*.csv", "README.md"]
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


class HubOptions(TypedDict, total=False):
    """Options of fetching a repository.

    Attributes:
        revision: branch, tag or commit of the repository; default ``main``.
        token: of the hub; default that of the login.
        cache_dir: the hub's cache; default its usual place.
        local_files_only: never use the network.
        force_download: use the network even for a cached repository, to get changes.
    """

    revision: str | None
    token: str | bool | None
    cache_dir: str | Path | None
    local_files_only: bool
    force_download: bool


def fetch(path_or_repo: str | Path, **options: Unpack[HubOptions]) -> Path:
    """Return a model's folder; a repository's comes from the cache if it is complete there.

    Args:
        path_or_repo: a folder, or a repository ``owner/name`` of the Hugging Face hub.
        **options: see :class:`HubOptions`.

    Raises:
        BadInput: no folder and no repository, or no model there.
        BadConfig: no such repository, or no access to it.
        StorageFailed: the hub cannot be reached.
    """
    path = Path(path_or_repo)
    if path.is_dir():
        return path
    name = str(path_or_repo)
    if path.exists() or not _REPOSITORY.fullmatch(name):
        found = unquoted("a file" if path.exists() else "no folder")
        expected = "a model's folder, or a repository owner/name of the hub"
        raise BadInput(path, "model", found, expected)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    local_only, force = options.get("local_files_only"), bool(options.get("force_download"))

    def snapshot(local: bool) -> Path:
        how: HubOptions = {**options, "local_files_only": local}
        how["force_download"] = force and not local
        return Path(snapshot_download(name, allow_patterns=_PATTERNS, **how))

    if local_only or not force:
        # an interrupted download leaves a part, which older hub clients return
        with contextlib.suppress(LocalEntryNotFoundError):
            folder = snapshot(local=True)
            if all((folder / file).is_file() for file in (CONFIG, WEIGHTS)):
                return folder
        if local_only:
            fix = "leave out local_files_only to fetch it"
            raise BadInput(name, "hub", unquoted("nothing in the cache"), "a fetched model", fix)
    with hub_errors(name, "model"):
        folder = snapshot(local=False)
    missing = [file for file in (CONFIG, WEIGHTS) if not (folder / file).is_file()]
    if missing:
        fix = "give a repository that push_to_hub wrote"
        raise BadInput(name, "hub", unquoted(f"no {missing[0]}"), "a model of this package", fix)
    return folder


class PushOptions(TypedDict, total=False):
    """Options of sending a model to the hub.

    Attributes:
        token: of the hub; default that of the login.
        private: whether a new repository is private; default that of the hub.
        commit_message: of the commit.
    """

    token: str | bool | None
    private: bool | None
    commit_message: str


def push(save: Callable[[Path], None], repo_id: str, **options: Unpack[PushOptions]) -> str:
    """Send a model to a repository of the hub, which is created if absent.

    Args:
        save: writes the model's folder.
        repo_id: ``owner/name``.
        **options: see :class:`PushOptions`.

    Returns:
        The commit's address.

    Raises:
        BadInput: not a repository's name.
        BadConfig: no access.
        StorageFailed: the hub cannot be reached.
    """
    from huggingface_hub import HfApi

    if not _REPOSITORY.fullmatch(repo_id):
        raise BadInput(repo_id, "repository", repo_id, "owner/name")
    api = HfApi(token=options.get("token"))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        save(folder)
        with hub_errors(repo_id, "model"):
            api.create_repo(repo_id, private=options.get("private"), exist_ok=True)
            commit = api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                commit_message=options.get("commit_message", "Upload model"),
                allow_patterns=_PATTERNS,
            )
    return str(commit.commit_url)
