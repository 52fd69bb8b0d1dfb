"""Files of the Hugging Face hub: listed, fetched so that a stopped transfer goes on, and checked.

huggingface_hub's own download discards what a process that fails has fetched, whether it came by
HTTP or by xet: each process has a temporary file of its own. So its HTTP client fetches into a
part file that is kept here, and goes on from its end; xet takes no part.
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

from stflow_graph.errors import BadConfig, BadInput, StflowError, StorageFailed, unquoted
from stflow_graph.io.atomic import as_storage_error, check_file, replace_synced

Kind = Literal["dataset", "model"]
KINDS: tuple[Kind, ...] = ("dataset", "model")
_TIMEOUT_S = 30
_NETWORK_MODULES = ("httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3")


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
        """Return where the parts that have come so far are kept; another content has another."""
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
        """Return the commit that a revision is now, and all files of it.

        Raises:
            BadConfig: no such repository or revision, or no access to it.
            StorageFailed: the hub cannot be reached.
            BadInput: a file's name would leave the folder.
        """
        from huggingface_hub import HfApi
        from huggingface_hub.hf_api import RepoFile

        api = HfApi(endpoint=self.endpoint, token=self.token)
        with self._errors(repo):
            found: Any = api.repo_info(
                repo.id, repo_type=repo.kind, revision=repo.revision, timeout=_TIMEOUT_S
            )
            entries = list(
                api.list_repo_tree(repo.id, recursive=True, revision=found.sha, repo_type=repo.kind)
            )
        files = [entry for entry in entries if isinstance(entry, RepoFile)]
        return found.sha, [
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
        """Fetch a file; what an earlier call has left is completed by a range request.

        Args:
            repo: the repository.
            commit: the commit in whose listing the file is.
            file: the file.
            target: the final path; it holds the old file or the new complete file, nothing else.
            progress: called with the number of bytes that are there, of this file.

        Raises:
            BadConfig: no access.
            StorageFailed: the disk is full, the hub cannot be reached (what came is kept), or
                what came is not what the hub lists (it is discarded).
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
                if stream.tell() > file.size:
                    stream.truncate(0)
                have = stream.tell()
                progress(have)
                if have < file.size:
                    counted: Any = _Counted(stream, progress)
                    http_get(url, counted, resume_size=have, headers=headers)
        if not file.is_at(part):
            part.unlink()
            raise StorageFailed(
                f"{target}: what came from {repo.id} is not what the hub lists (checksum or size); "
                "it was discarded. Fix: run the command again"
            )
        with as_storage_error(target):
            replace_synced(part, target)
            for stale in target.parent.glob(f".{glob.escape(target.name)}.*.part"):
                stale.unlink()  # of a content that the hub no longer has

    @contextlib.contextmanager
    def _errors(self, repo: Repo) -> Iterator[None]:
        """Turn what the hub's client raises into one line each."""
        from huggingface_hub import constants, errors

        endpoint = self.endpoint or constants.ENDPOINT
        page = f"{endpoint}/{'datasets/' if repo.kind == 'dataset' else ''}{repo.id}"
        try:
            yield
        except (StflowError, MemoryError):
            raise
        except errors.HFValidationError:
            raise BadConfig(f"repository {repo.id!r}: expected owner/name") from None
        except errors.OfflineModeIsEnabled:
            raise BadConfig(f"{page}: HF_HUB_OFFLINE is set. Fix: unset it") from None
        except errors.RevisionNotFoundError:
            raise BadConfig(f"{page}: no revision {repo.revision!r} there") from None
        except errors.EntryNotFoundError as error:
            raise StorageFailed(f"{page}: a listed file is gone: {_short(error)}") from None
        except errors.HfHubHTTPError as error:
            raise _refusal(error, page) from None
        except Exception as error:
            if type(error).__module__.split(".")[0] not in _NETWORK_MODULES:
                raise
            raise StorageFailed(
                f"{endpoint} cannot be reached or broke off ({_short(error)}). "
                "Fix: run the command again when the network is back; what has come is kept"
            ) from None


def _refusal(error: Any, page: str) -> StflowError:
    status = error.response.status_code
    if status not in (401, 403, 404):
        fix = "run the command again later; what has come is kept"
        return StorageFailed(f"{page}: the hub answered {status}. Fix: {fix}")
    log_in = "log in with `hf auth login`, set HF_TOKEN or give --token-file"
    if status == 404:
        return BadConfig(
            f"{page}: no such repository, or it is private. Fix: its name; or {log_in}"
        )
    return BadConfig(
        f"{page}: no access, or no such repository (HTTP {status}). "
        f"Fix: accept the licence on that page, and {log_in}"
    )


def _check_path(path: str, repo: Repo) -> str:
    parts = path.split("/")
    if not path.isprintable() or "\\" in path or any(part in ("", ".", "..") for part in parts):
        raise BadInput(repo.id, "file name", path, "a path inside the repository")
    return path


def _open_no_link(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the client's own progress bars away, and what it says when it tries again."""
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


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__


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
