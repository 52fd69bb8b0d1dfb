"""The download stage: data sets and weights from the Hugging Face hub, resumable and checked."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, cast

from stflow_graph.encoders.catalogue import entry_of
from stflow_graph.errors import BadConfig, BadInput, StorageFailed, unquoted
from stflow_graph.io.atomic import read_json, sha256, write_json
from stflow_graph.io.hub import KINDS, Hub, Kind, RemoteFile, Repo
from stflow_graph.io.locks import lock
from stflow_graph.io.outputs import check_output_folder

MANIFEST = "download.json"
HEST_BENCH = "MahmoodLab/hest-bench"
_WEIGHTS_IN_BENCH = "fm_v1/*"
Progress = Callable[[str, int, int], None]


@dataclasses.dataclass(frozen=True)
class Selection:
    """Files of a repository.

    Attributes:
        repo: the repository.
        patterns: shell patterns, of which ``*`` also matches ``/``; each must match a file.
        ignored: patterns of files to leave out.
        first_only: use the first pattern that matches a file.
        folder: folder under ``out`` for all files; None keeps the repository's folders.
    """

    repo: Repo
    patterns: tuple[str, ...] = ("*",)
    ignored: tuple[str, ...] = ()
    first_only: bool = False
    folder: str | None = None

    @classmethod
    def bench(cls, datasets: Sequence[str] = (), revision: str = "main") -> Selection:
        """Return data sets of HEST-bench, by default all, for a HEST-bench root."""
        patterns = tuple(f"{name}/*" for name in datasets) or ("*",)
        return cls(Repo(HEST_BENCH, "dataset", revision), patterns, (_WEIGHTS_IN_BENCH,))

    @classmethod
    def weights(cls, encoder: str, revision: str = "main") -> Selection:
        """Return the weights of an encoder, for a weights root.

        Raises:
            BadConfig: an unknown encoder, or one whose weights are not on the hub.
        """
        entry = entry_of(encoder)
        if entry.hub is None:
            raise BadConfig(f"encoder {encoder!r}: its weights are not on the hub: {entry.page}")
        repo = Repo(entry.hub, cast(Kind, entry.hub_kind), revision)
        files = tuple(f"{entry.hub_folder}/{file}".lstrip("/") for file in entry.files)
        return cls(repo, files, first_only=True, folder=entry.name)

    @classmethod
    def repository(
        cls, name: str, kind: str, patterns: Sequence[str] = (), revision: str = "main"
    ) -> Selection:
        """Return files of any repository, by default all.

        Raises:
            BadConfig: an unknown kind.
        """
        if kind not in KINDS:
            raise BadConfig(f"repository type {kind!r}: expected {' or '.join(KINDS)}")
        return cls(Repo(name, kind, revision), tuple(patterns) or ("*",))

    def choose(self, files: Sequence[RemoteFile]) -> dict[str, RemoteFile]:
        """Return the selected files by their paths in the folder of the download.

        Raises:
            BadConfig: a pattern matches no file; lists the repository's folders.
        """
        files = [f for f in files if not any(fnmatchcase(f.path, p) for p in self.ignored)]
        matches = {p: [f for f in files if fnmatchcase(f.path, p)] for p in self.patterns}
        if self.first_only:
            matches = dict([(p, some) for p, some in matches.items() if some][:1]) or matches
        unmatched = [pattern for pattern, some in matches.items() if not some]
        if unmatched:
            tops = ", ".join(sorted({file.path.split("/")[0] for file in files})[:20])
            raise BadConfig(f"{self.repo.id}: no file {' or '.join(unmatched)}; it has {tops}")
        return {
            file.path if self.folder is None else f"{self.folder}/{file.path.rsplit('/')[-1]}": file
            for some in matches.values()
            for file in some
        }


@dataclasses.dataclass(frozen=True)
class Downloaded:
    """The result of a download.

    Attributes:
        commit: of the repository.
        fetched: files fetched, some of them resumed.
        kept: files that were complete already.
        n_bytes: total size.
    """

    commit: str
    fetched: list[Path]
    kept: list[Path]
    n_bytes: int


def download(
    selection: Selection,
    out: str | Path,
    *,
    hub: Hub | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Downloaded:
    """Fetch files of the hub into a folder; an interrupted download is resumed by the next call.

    A file has its final path only once it is complete and its checksum is the hub's. Existing
    files are checked and not fetched again. ``out/download.json`` records the commit and the
    SHA-256 of each file.

    Args:
        selection: the files.
        out: a HEST-bench root, a weights root or any folder.
        hub: the client; None uses the user's environment.
        overwrite: replace files of other content that are not in ``download.json``.
        progress: called with (path, bytes done, bytes in all), both of all files together.

    Raises:
        BadConfig: no such repository, revision or file, or no access to it.
        BadInput: a file of other content exists at a file's path, or ``out`` is no folder.
        StorageFailed: not enough disk, no network, or a corrupt transfer.
    """
    out, hub = check_output_folder(out), hub or Hub()
    commit, files = hub.list_files(selection.repo)
    chosen = selection.choose(files)
    with lock(out / ".download.lock", "another download"):
        manifest = _Manifest(out / MANIFEST, selection.repo, commit)
        targets = {name: _inside(out, name) for name in chosen}
        kept = {name: file for name, file in chosen.items() if file.is_at(targets[name])}
        missing = {name: file for name, file in chosen.items() if name not in kept}
        for name in missing:
            if targets[name].exists() and not (overwrite or manifest.has(name, targets[name])):
                fix = "move it away, choose another folder, or give --overwrite"
                found = unquoted("another content")
                raise BadInput(targets[name], "file", found, f"that of {selection.repo.id}", fix)
        _check_space(out, [(file, targets[name]) for name, file in missing.items()])
        total = sum(file.size for file in chosen.values())
        done = total - sum(file.size for file in missing.values())
        manifest.add(kept, targets)
        for name, file in missing.items():

            def report(n: int, name: str = name, before: int = done) -> None:
                if progress:
                    progress(name, before + n, total)

            hub.fetch(selection.repo, commit, file, targets[name], report)
            manifest.add({name: file}, targets)
            done += file.size
    return Downloaded(
        commit, [targets[name] for name in missing], [targets[name] for name in kept], total
    )


class _Manifest:
    """The origin and checksum of each file."""

    def __init__(self, path: Path, repo: Repo, commit: str) -> None:
        self._path = path
        self._origin = {
            "repo": repo.id,
            "kind": repo.kind,
            "revision": repo.revision,
            "commit": commit,
        }
        stored = read_json(path) if path.exists() else {}
        files = stored.get("files") if isinstance(stored, dict) else None
        self._files: dict[str, dict[str, Any]] = files if isinstance(files, dict) else {}

    def has(self, name: str, path: Path) -> bool:
        """Return whether a file is unchanged since it was fetched."""
        entry = self._files.get(name)
        return entry is not None and entry.get("sha256") == sha256(path)

    def add(self, files: Mapping[str, RemoteFile], paths: Mapping[str, Path]) -> None:
        """Record complete files."""
        new = {
            name: {
                **self._origin,
                "size": file.size,
                "sha256": file.digest if len(file.digest) == 64 else sha256(paths[name]),
            }
            for name, file in files.items()
        }
        if any(self._files.get(name) != entry for name, entry in new.items()):
            self._files |= new
            content = {"format": "stflow_graph.download/1", "files": self._files}
            write_json(self._path, content)


def _inside(out: Path, name: str) -> Path:
    """Return the path of a file, refusing links out of the folder."""
    path = out / name
    if not path.parent.resolve().is_relative_to(out.resolve()):
        raise BadInput(path, "output", unquoted("a link out of the folder"), f"a path in {out}")
    return path


def _check_space(out: Path, files: Sequence[tuple[RemoteFile, Path]]) -> None:
    parts = [part.stat().st_size for file, path in files if (part := file.part(path)).exists()]
    needed = sum(file.size for file, _ in files) - sum(parts)
    free = shutil.disk_usage(out).free
    if needed > free:
        raise StorageFailed(
            f"{out}: {needed / 1e9:,.2f} GB are needed and {free / 1e9:,.2f} GB are free. "
            "Fix: make room, choose fewer data sets, or another folder"
        )
