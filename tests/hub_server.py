"""A small server on this machine that speaks the part of the hub's API which downloads need."""

import dataclasses
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "c0ffee" + "0" * 34
_PAGE = 2  # files of a page of the listing


@dataclasses.dataclass
class FakeHub:
    """What the server offers, how it misbehaves, and what it was asked.

    Attributes:
        repos: ``"datasets/owner/name"`` or ``"models/owner/name"`` to path to content.
        large: paths longer than this many bytes count as large files (LFS).
        refuse: repository to the status and error code that its files get without ``token``.
        token: the one that opens refused repositories.
        breaks_after: bytes of a file after which the connection closes, and the server is gone.
        gone: whether every file gets 503.
        status: of the answer to every request; None serves.
        corrupt: whether files come with one byte changed.
        requests: (method, path, Range header) of every request.
    """

    repos: dict[str, dict[str, bytes]] = dataclasses.field(default_factory=dict)
    large: int = 100
    refuse: dict[str, tuple[int, str]] = dataclasses.field(default_factory=dict)
    token: str = "hf_good"
    breaks_after: int | None = None
    gone: bool = False
    status: int | None = None
    corrupt: bool = False
    requests: list[tuple[str, str, str | None]] = dataclasses.field(default_factory=list)
    url: str = ""

    def asked(self, part: str) -> list[str | None]:
        """Return the ranges of the requests whose path has ``part``."""
        return [requested for _, path, requested in self.requests if part in path]


@contextmanager
def serve(hub: FakeHub) -> Iterator[FakeHub]:
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def log_message(self, *arguments: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        self.hub.requests.append((self.command, unquote(self.path), self.headers.get("Range")))
        parts = unquote(url.path).strip("/").split("/")
        if self.hub.status is not None:
            self._error(self.hub.status, "RepoNotFound" if self.hub.status == 401 else "")
        elif parts[0] == "api":
            self._api("/".join(parts[1:4]), parts[4:], parse_qs(url.query))
        elif parts[0] == "cdn":
            self._file(self.hub.repos["/".join(parts[1:4])]["/".join(parts[4:])])
        else:
            repo = (
                "/".join(parts[:3]) if parts[0] == "datasets" else "models/" + "/".join(parts[:2])
            )
            self._resolve(repo, "/".join(parts[parts.index("resolve") + 2 :]))

    def _api(self, repo: str, what: list[str], query: dict[str, list[str]]) -> None:
        if repo not in self.hub.repos:
            self._error(404, "RepoNotFound")
        elif what[0] == "revision" and what[1] not in ("main", COMMIT):
            self._error(404, "RevisionNotFound")
        elif what[0] == "revision":
            siblings = [{"rfilename": path} for path in self.hub.repos[repo]]
            self._json({"id": repo.split("/", 1)[1], "sha": COMMIT, "siblings": siblings}, {})
        else:
            self._listing(repo, int(query.get("cursor", ["0"])[0]))

    def _listing(self, repo: str, start: int) -> None:
        entries = []
        for path, content in list(self.hub.repos[repo].items())[start : start + _PAGE]:
            blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            entry = {"type": "file", "path": path, "size": len(content), "oid": blob}
            if len(content) > self.hub.large:
                oid = hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"oid": oid, "size": len(content), "pointerSize": 130}
            entries.append(entry)
        end, headers = start + _PAGE, {}
        if end < len(self.hub.repos[repo]):
            page = f"{self.hub.url}/api/{repo}/tree/{COMMIT}?recursive=True&cursor={end}"
            headers["Link"] = f'<{page}>; rel="next"'
        self._json([{"type": "directory", "path": "d", "oid": "0" * 40}, *entries], headers)

    def _resolve(self, repo: str, path: str) -> None:
        content = self.hub.repos.get(repo, {}).get(path)
        refused = self.hub.refuse.get(repo)
        if refused and self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            self._error(*refused)
        elif content is None:
            self._error(404, "EntryNotFound")
        elif len(content) > self.hub.large:  # the hub sends large files elsewhere
            self._send(302, b"", {"Location": f"{self.hub.url}/cdn/{repo}/{path}"})
        else:
            self._file(content)

    def _file(self, content: bytes) -> None:
        if self.hub.gone:
            self._error(503, "")
            return
        if self.hub.corrupt:
            content = bytes([content[0] ^ 1]) + content[1:]
        headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
        requested, status = self.headers.get("Range"), 200
        if requested:
            start = int(requested.removeprefix("bytes=").rstrip("-"))
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            content, status = content[start:], 206
        limit = self.hub.breaks_after
        if limit is not None and len(content) > limit:
            self.hub.gone, self.hub.breaks_after, self.close_connection = True, None, True
            self._send(status, content, headers, n_sent=limit)
        else:
            self._send(status, content, headers)

    def _json(self, value: object, headers: dict[str, str]) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json", **headers})

    def _error(self, status: int, code: str) -> None:
        self._send(status, b"", {"X-Error-Code": code} if code else {})

    def _send(
        self, status: int, content: bytes, headers: dict[str, str], n_sent: int | None = None
    ) -> None:
        self.send_response(status)
        etag = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        about = {"Content-Length": str(len(content)), "ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}
        for name, value in {**about, **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[:n_sent])
