"""A server that speaks the Hub's protocol to the real huggingface_hub client: listings, revisions, files, redirects.

Large files are redirected to a second server, as the Hub's are to its storage. Faults are set by a test: who may read,
where a connection breaks, which file is served wrong.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

_REVISION = re.compile(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?")
_TREE = re.compile(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)")
_RESOLVE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
_STORED = re.compile(r"/stored/([0-9a-f]{64})/(.+)")
#: Files of so many bytes are in the large storage; much less than the real Hub's, so that tests stay small.
LARGE = 2000


@dataclass
class Repository:
    """What the server has under one name."""

    files: Mapping[str, bytes]
    commit: str
    branches: set[str] = field(default_factory=lambda: {"main"})
    #: Only whoever sends this token may know of it.
    token: str | None = None
    #: Only whoever sends this token may read its files.
    gate: str | None = None


@dataclass(frozen=True)
class Seen:
    """A request that came."""

    method: str
    path: str
    range: str | None
    authorization: str | None


class HubServer:
    """Runs until `close`. Attributes may be changed while it runs."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.seen: list[Seen] = []
        self.page = 1000
        #: By the file's name: after how many bytes of an answer its connection is closed, and how often.
        self.breaks: dict[str, tuple[int, int]] = {}
        #: By the file's name: what is served instead of its bytes.
        self.corrupted: dict[str, bytes] = {}
        #: Whether a file whose connection broke is not served any more.
        self.refuse_after_break = False
        self.knows_ranges = True
        #: A status and a message that every request to the Hub is answered with.
        self.refuses_all: tuple[int, str] | None = None
        #: Is called with a file's name before its bytes are served.
        self.before_bytes: Callable[[str], None] = lambda _: None
        self._servers = [_serve(self, _Hub), _serve(self, _Storage)]
        self.url, self.storage_url = (f"http://127.0.0.1:{server.server_port}" for server in self._servers)

    def add(self, name: str, files: Mapping[str, bytes], **options: Any) -> Repository:
        """Puts a repository there, or a new commit of it."""
        listing = json.dumps({path: _sha256(data) for path, data in files.items()}, sort_keys=True)
        commit = hashlib.sha1(f"{name} {listing}".encode()).hexdigest()
        self.repositories[name] = Repository(files, commit, **options)
        return self.repositories[name]

    def stored(self, sha256: str) -> bytes:
        """A large file's bytes, by its digest."""
        everything = (data for repository in self.repositories.values() for data in repository.files.values())
        return next(data for data in everything if _sha256(data) == sha256)

    def ranges(self) -> list[str]:
        """What of files in the large storage was asked for in part."""
        return [each.range for each in self.seen if each.range and each.path.startswith("/stored/")]

    def fetched(self) -> list[str]:
        """The files whose bytes were asked for, once each."""
        paths = [each.path for each in self.seen if each.method == "GET"]
        found = [_RESOLVE.fullmatch(path) or _STORED.fullmatch(path) for path in paths]
        return sorted({unquote(each[each.re.groups]) for each in found if each})

    def close(self) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()


def _serve(hub: HubServer, handler: type[_Handler]) -> ThreadingHTTPServer:
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (handler,), {"hub": hub}))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    return server


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or each answer waits for the client's acknowledgement of its headers

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ") or None
        self.hub.seen.append(Seen(self.command, urlsplit(self.path).path, self.headers.get("Range"), token))
        self.answer(token)

    def answer(self, token: str | None) -> None:
        raise NotImplementedError

    def send(self, status: int, body: bytes = b"", headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_json(self, value: Any, headers: Mapping[str, str] | None = None) -> None:
        self.send(200, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})

    def refuse(self, status: int, code: str, message: str = "") -> None:
        self.send(status, b"", {"X-Error-Code": code, "X-Error-Message": message or code})

    def send_file(self, name: str, data: bytes, headers: Mapping[str, str]) -> None:
        """A file's bytes from where the client wants them, up to where the connection is to break."""
        hub = self.hub
        after, times = hub.breaks.get(name, (0, 0))
        if name in hub.breaks and not times and hub.refuse_after_break:
            self.refuse(404, "EntryNotFound")
            return
        data = hub.corrupted.get(name, data)
        found = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")) if hub.knows_ranges else None
        start = int(found[1]) if found else 0
        body = data[start:]
        self.send_response(206 if found else 200)
        if found:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        hub.before_bytes(name)
        if times:
            hub.breaks[name] = (after, times - 1)
            self.wfile.write(body[:after])
            self.close_connection = True
            return
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Nothing on standard error."""


class _Hub(_Handler):
    def answer(self, token: str | None) -> None:
        if self.hub.refuses_all:
            self.refuse(self.hub.refuses_all[0], "", self.hub.refuses_all[1])
            return
        path = urlsplit(self.path).path
        for pattern, answer in ((_TREE, self._tree), (_REVISION, self._revision), (_RESOLVE, self._resolve)):
            found = pattern.fullmatch(path)
            if not found:
                continue
            repository = self.hub.repositories.get(found[1])
            revision = unquote(found[2] or "main")
            if repository is None or repository.token not in (None, token):
                # The real one answers so, too, whoever asks: it does not tell what is private from what is not there.
                self.refuse(401 if token is None else 404, "RepoNotFound")
            elif revision not in (repository.commit, *repository.branches):
                self.refuse(404, "RevisionNotFound")
            else:
                answer(found, repository, token)
            return
        self.send(404)

    def _revision(self, found: re.Match[str], repository: Repository, _token: str | None) -> None:
        files = [{"rfilename": name} for name in repository.files]
        self.send_json({"id": found[1], "modelId": found[1], "sha": repository.commit, "siblings": files})

    def _tree(self, found: re.Match[str], repository: Repository, _token: str | None) -> None:
        cursor = int(parse_qs(urlsplit(self.path).query).get("cursor", ["0"])[0])
        entries = [_entry(name, data) for name, data in sorted(repository.files.items())]
        more = cursor + self.hub.page
        link = f"{self.hub.url}/api/models/{found[1]}/tree/{found[2]}?recursive=True&cursor={more}"
        headers = {"Link": f'<{link}>; rel="next"'} if more < len(entries) else {}
        self.send_json(entries[cursor:more], headers)

    def _resolve(self, found: re.Match[str], repository: Repository, token: str | None) -> None:
        name = unquote(found[3])
        if repository.gate not in (None, token):
            self.refuse(401 if token is None else 403, "GatedRepo")
            return
        if name not in repository.files:
            self.refuse(404, "EntryNotFound")
            return
        data = repository.files[name]
        headers = {"X-Repo-Commit": repository.commit, "ETag": f'"{_blob(data)}"'}
        if len(data) < LARGE:
            self.send_file(name, data, headers)
            return
        headers |= {"X-Linked-Etag": f'"{_sha256(data)}"', "X-Linked-Size": str(len(data))}
        self.send(302, b"", {**headers, "Location": f"{self.hub.storage_url}/stored/{_sha256(data)}/{quote(name)}"})


class _Storage(_Handler):
    def answer(self, token: str | None) -> None:
        found = _STORED.fullmatch(self.path)
        if found is None:
            self.send(404)
            return
        self.send_file(unquote(found[2]), self.hub.stored(found[1]), {"ETag": f'"{found[1]}"'})


def _entry(name: str, data: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": name, "size": len(data), "oid": _blob(data)}
    if len(data) >= LARGE:
        entry["lfs"] = {"oid": _sha256(data), "size": len(data), "pointerSize": 130}
    return entry


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _blob(data: bytes) -> str:
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()
