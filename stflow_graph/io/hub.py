"""Files of the Hugging Face hub: listing, resumable downloads, checksums.

huggingface_hub's own download discards the partial file of a process that fails, by HTTP and by
xet, as each process has a temporary file of its own. Here its HTTP client appends to a part file
that is kept and resumed; xet is not used.
"""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import hashlib
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal

from stflow_graph.errors import BadInput, StorageFailed, unquoted
from stflow_graph.io.atomic import as_storage_error, check_file
from stflow_graph.io.hub_errors import hub_errors
from stflow_graph.io.renames import put, sync
from stflow_graph.io.temporaries import remove, temporary_beside

Kind = Literal["dataset", "model"]
KINDS: tuple[Kind, ...] = ("dataset", "model")
_TIMEOUT_S = 30


@dataclasses.dataclass(frozen=True)
class Repo:
    """A repository on the hub: ``owner/name``, its kind, and a branch, tag or commit."""

    id: str
    kind: Kind = "dataset"
    revision: str = "main"


@dataclasses.dataclass(frozen=True)
class RemoteFile:
    """A file of a repository.

    Attributes:
        path: in the repository.
        size: bytes.
        digest: SHA-256 of the content of a large file, git's SHA-1 of others, hex.
    """

    path: str
    size: int
    digest: str

    def is_at(self, path: Path) -> bool:
        """Return whether ``path`` is a file of this content."""
        if not path.is_file() or path.stat().st_size != self.size:
            return False
        if len(self.digest) == 64:
            hasher = hashlib.sha256()
        else:  # the name that git gives to a blob
            hasher = hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False)
        with path.open("rb") as file:
            return hashlib.file_digest(file, lambda: hasher).hexdigest() == self.digest

    def part(self, target: Path) -> Path:
        """Return the path of the partial download, one for each content."""
        return target.with_name(f".{target.name}.{self.digest[:16]}.part")


@dataclasses.dataclass(frozen=True)
class Hub:
    """A client of the hub.

    Attributes:
        endpoint: its address; None takes ``HF_ENDPOINT`` or huggingface.co.
        token: None takes ``HF_TOKEN`` or that of ``hf auth login``.
    """

    endpoint: str | None = None
    token: str | None = None

    def list_files(self, repo: Repo) -> tuple[str, list[RemoteFile]]:
        """Return the current commit of a revision, and all its files.

        Raises:
            BadConfig: no such repository or revision, or no access to it.
            StorageFailed: the hub cannot be reached.
            BadInput: a file's name would leave the folder.
        """
        from huggingface_hub import HfApi
        from huggingface_hub.hf_api import RepoFile

        api = HfApi(endpoint=self.endpoint, token=self.token)
        with self._errors(repo):
            info: Any = api.repo_info(
                repo.id, repo_type=repo.kind, revision=repo.revision, timeout=_TIMEOUT_S
            )
            entries = list(
                api.list_repo_tree(repo.id, recursive=True, revision=info.sha, repo_type=repo.kind)
            )
        files = [entry for entry in entries if isinstance(entry, RepoFile)]
        return info.sha, [
            RemoteFile(
                _check_path(file.path, repo),
                file.size,
                file.blob_id if file.lfs is None else file.lfs.sha256,
            )
            for file in files
        ]

    def fetch(
        self,
        repo: Repo,
        commit: str,
        file: RemoteFile,
        target: Path,
        progress: Callable[[int], None],
    ) -> None:
        """Fetch a file; a range request completes the part of an earlier call.

        Args:
            repo: the repository.
            commit: the commit that lists the file.
            file: the file.
            target: the final path; it holds the old file or the new complete file, nothing else.
            progress: called with the number of bytes of this file on disk.

        Raises:
            BadConfig: no access.
            StorageFailed: the disk is full, the hub cannot be reached (the part is kept), or the
                content is not what the hub lists (it is discarded).
        """
        from huggingface_hub import hf_hub_url
        from huggingface_hub.file_download import http_get
        from huggingface_hub.utils import build_hf_headers

        url = hf_hub_url(
            repo.id, file.path, repo_type=repo.kind, revision=commit, endpoint=self.endpoint
        )
        # a compressed answer has no ranges
        headers = {**build_hf_headers(token=self.token), "Accept-Encoding": "identity"}
        part = file.part(target)
        with as_storage_error(target), self._errors(repo), _quiet():
            target.parent.mkdir(parents=True, exist_ok=True)
            with open(part, "ab", opener=_open_no_link) as stream:
                have = stream.tell() if stream.tell() <= file.size else stream.truncate(0)
                progress(have)
                if have < file.size:
                    counted: Any = _Counted(stream, progress)
                    http_get(url, counted, resume_size=have, headers=headers)
        if not file.is_at(part):
            part.unlink()
            raise StorageFailed(
                f"{target}: the download from {repo.id} is not what the hub lists "
                "(checksum or size) and was discarded. Fix: run the command again"
            )
        with as_storage_error(target):
            sync(part)
            temporary = temporary_beside(target)  # where the old content will be
            os.rename(part, temporary)
            try:
                put(temporary, target)
            finally:
                remove(temporary)
            for stale in target.parent.glob(f".{glob.escape(target.name)}.*.part"):
                stale.unlink()  # of a content that the hub no longer has

    def _errors(self, repo: Repo) -> contextlib.AbstractContextManager[None]:
        return hub_errors(repo.id, repo.kind, self.endpoint)


def _check_path(path: str, repo: Repo) -> str:
    parts = path.split("/")
    if not path.isprintable() or "\\" in path or any(part in ("", ".", "..") for part in parts):
        raise BadInput(repo.id, "file name", path, "a path inside the repository")
    return path


def _open_no_link(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the client's own progress bars and its messages on retries."""
    from huggingface_hub.utils import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    logger = logging.getLogger("huggingface_hub")
    level, had_bars = logger.level, not are_progress_bars_disabled()
    logger.setLevel(logging.ERROR)
    if had_bars:
        disable_progress_bars()
    try:
        yield
    finally:
        logger.setLevel(level)
        if had_bars:
            enable_progress_bars()


class _Counted:
    """The part file as the client writes it, reporting how much is there."""

    def __init__(self, stream: BinaryIO, progress: Callable[[int], None]) -> None:
        self._stream, self._progress = stream, progress
        # the client rewinds and truncates where a server ignores a range
        self.tell, self.seek, self.truncate = stream.tell, stream.seek, stream.truncate

    def write(self, chunk: bytes) -> int:
        written = self._stream.write(chunk)
        self._progress(self._stream.tell())
        return written


def read_token(path: str | Path) -> str:
    """Read a token from a file, so that no command line shows it.

    Raises:
        BadInput: the file is missing, or is not one line of text.
    """
    try:
        token = check_file(path).read_text(encoding="ascii").strip()
    except UnicodeDecodeError:
        token = ""
    if not token or len(token.split()) > 1:
        raise BadInput(path, "content", unquoted("not a token"), "one line, such as hf_...")
    return token
