"""A server on this machine that answers as the Hub does, as far as its client asks.

Two ports: the Hub (API, small files), and its content network, to which large files are redirected. Hosts differ, too
(127.0.0.1 and localhost), so that a client which sends its token along with a redirect is noticed.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath
from typing import Any, ClassVar
from urllib.parse import parse_qs, quote, unquote, urlencode, urlsplit

PAGE = 2
"""Entries of a listing per page."""
LARGE = 200
"""Bytes from which a file lies on the content network."""
_API = re.compile(r"/api/(?P<kind>datasets|models)/(?P<name>[^/]+/[^/]+)(/(?P<call>[\w-]+)(/(?P<rest>.*))?)?")
_RESOLVE = re.compile(r"/(?P<kind>datasets/)?(?P<name>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")


@dataclass
class Repository:
    """A repository: its files at each commit, and what it takes to read it."""

    files: dict[str, bytes]
    tags: dict[str, str] = field(default_factory=dict)
    """Commit of each branch and tag."""
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    access: str = "public"
    """`public`, `private` (a reader without the token is told that it is missing) or `gated`."""

    def __post_init__(self) -> None:
        self.commit(self.files)

    def commit(self, files: dict[str, bytes]) -> str:
        """Make the files the main branch, and return the commit."""
        content = sorted((path, hashlib.sha256(data).hexdigest()) for path, data in files.items())
        commit = hashlib.sha1(json.dumps(content).encode()).hexdigest()
        self.files, self.commits[commit], self.tags["main"] = files, files, commit
        return commit

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """Return commit and files of a revision, or None."""
        commit = self.tags.get(revision, revision)
        return (commit, self.commits[commit]) if commit in self.commits else None


@dataclass
class Hub:
    """The state of the server: tests set what it refuses and read what it was asked."""

    token: str = "hf_secret"
    repositories: dict[str, Repository] = field(default_factory=dict)
    """By `datasets/owner/name` or `models/owner/name`."""
    requests: Counter[str] = field(default_factory=Counter)
    """Requests by method and path."""
    leaked: list[str] = field(default_factory=list)
    """Requests to the content network that had the token."""
    limited: int = 0
    """So many requests are refused with 429 before any is answered."""
    retry_after: str = "0"
    cut: dict[str, int] = field(default_factory=dict)
    """Paths whose download breaks after so many bytes each time it is asked for; -1: refuses every byte."""
    uploaded: dict[str, bytes] = field(default_factory=dict)
    """Large files by sha256, before the commit that names them."""
    endpoint: str = ""
    content: str = ""

    def add(self, name: str, files: dict[str, bytes], **more: Any) -> Repository:
        """Add a repository, `datasets/owner/name` or `models/owner/name`."""
        self.repositories[name] = Repository(files, **more)
        return self.repositories[name]


class _Handler(BaseHTTPRequestHandler):
    hub: ClassVar[Hub]
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.hub.requests[f"{self.command} {urlsplit(self.path).path}"] += 1
        self._get()

    def _get(self) -> None:
        raise NotImplementedError

    def body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def send(self, status: int, data: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(data))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def send_json(self, value: Any, headers: dict[str, str] | None = None) -> None:
        self.send(200, json.dumps(value).encode(), {"Content-Type": "application/json"} | (headers or {}))

    def refuse(self, status: int, code: str, message: str) -> None:
        data = json.dumps({"error": message}).encode()
        headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self.send(status, data, {"Content-Type": "application/json"} | headers)

    def send_content(self, name: str, data: bytes, headers: dict[str, str]) -> None:
        """Answer with a file or the range of it that is asked for; break the connection where the test says so."""
        begin, total = 0, len(data)
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            begin, end = int(asked[1]), int(asked[2]) + 1 if asked[2] else total
            data = data[begin:end]
            headers = headers | {"Content-Range": f"bytes {begin}-{begin + len(data) - 1}/{total}"}
        status = 206 if asked else 200
        broken = self.hub.cut.get(name)
        if broken is None or self.command == "HEAD":
            self.send(status, data, headers)
            return
        self.send_response(status)
        for header, value in (headers | {"Content-Length": str(len(data))}).items():
            self.send_header(header, value)
        self.end_headers()
        self.wfile.write(data[: max(broken, 0)])
        self.close_connection = True


class _Content(_Handler):
    """The content network: files by sha256, with ranges; takes uploads."""

    def _get(self) -> None:
        if "Authorization" in self.headers:
            self.hub.leaked.append(self.path)
        sha256, name = (unquote(part) for part in self.path[1:].split("/", 1))
        for repository in self.hub.repositories.values():
            for files in repository.commits.values():
                for data in files.values():
                    if hashlib.sha256(data).hexdigest() == sha256:
                        return self.send_content(name, data, {"ETag": f'"{sha256}"', "Accept-Ranges": "bytes"})
        self.send(404)
        return None

    def do_PUT(self) -> None:
        data = self.body()
        self.hub.uploaded[hashlib.sha256(data).hexdigest()] = data
        self.send(200, headers={"ETag": '"done"'})


class _Hub(_Handler):
    """The Hub itself."""

    def _get(self) -> None:
        if self.limited():
            return None
        path = unquote(urlsplit(self.path).path)
        if path == "/api/whoami-v2":
            return self.send_json({"name": "owner", "type": "user"}) if self.known() else self.refuse(401, "", "who?")
        if match := _API.fullmatch(path):
            return self.api(match)
        if match := _RESOLVE.fullmatch(path):
            return self.resolve(match)
        return self.refuse(404, "", f"no such page: {path}")

    def limited(self) -> bool:
        if self.hub.limited <= 0:
            return False
        self.hub.limited -= 1
        self.send(429, b"{}", {"Retry-After": self.hub.retry_after, "X-Error-Message": "too many requests"})
        return True

    def known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {self.hub.token}"

    def repository(self, kind: str, name: str, *, content: bool) -> Repository | None:
        """Return a repository that the caller may read, or answer why not. Gated ones can be listed by all."""
        found = self.hub.repositories.get(f"{kind}/{name}")
        given = self.headers.get("Authorization")
        if given is not None and not self.known():
            self.refuse(401, "", "Invalid credentials in Authorization header")
        elif found is None or (found.access == "private" and not self.known()):
            self.refuse(404 if self.known() else 401, "RepoNotFound" if self.known() else "", "Repository not found")
        elif found.access == "gated" and content:
            message = f"Access to dataset {name} is restricted and you are not in the authorized list."
            self.refuse(403 if self.known() else 401, "GatedRepo", message)
        else:
            return found
        return None

    def api(self, match: re.Match[str]) -> None:
        kind, name, call = match["kind"], match["name"], match["call"]
        repository = self.repository(kind, name, content=False)
        if repository is None:
            return
        rest = match["rest"] or "main"
        found = repository.at(rest.split("/")[0])
        if found is None:
            return self.refuse(404, "RevisionNotFound", f"Invalid rev id: {rest}")
        commit, files = found
        if call in (None, "revision"):
            about = {"id": name, "sha": commit, "private": repository.access == "private", "tags": []}
            siblings = [{"rfilename": path} for path in sorted(files)]
            return self.send_json(about | {"siblings": siblings, "gated": repository.access == "gated"})
        if call == "tree":
            return self.tree(files, rest.partition("/")[2])
        return self.refuse(404, "", f"no such call: {call}")

    def tree(self, files: dict[str, bytes], folder: str) -> None:
        """Answer with one page of the listing of a folder, and the address of the next."""
        address = urlsplit(self.path)
        query = parse_qs(address.query)
        start, recursive = int(query.get("cursor", ["0"])[0]), query.get("recursive", ["false"])[0].lower() == "true"
        below = {path: data for path, data in files.items() if path.startswith(f"{folder}/" if folder else "")}
        if folder and not below:
            return self.refuse(404, "EntryNotFound", f"{folder} does not exist")
        paths = {path: _entry(path, data) for path, data in below.items()}
        for path in below:
            paths |= {str(parent): _folder(str(parent)) for parent in PurePosixPath(path).parents if parent.name}
        depth = len(PurePosixPath(folder).parts)
        inside = [entry for path, entry in sorted(paths.items()) if len(PurePosixPath(path).parts) > depth]
        entries = [entry for entry in inside if recursive or len(PurePosixPath(entry["path"]).parts) == depth + 1]
        headers = {}
        if start + PAGE < len(entries):
            more = urlencode({"recursive": str(recursive).lower(), "cursor": start + PAGE})
            headers["Link"] = f'<{self.hub.endpoint}{address.path}?{more}>; rel="next"'
        return self.send_json(entries[start : start + PAGE], headers)

    def paths(self, match: re.Match[str], data: bytes) -> None:
        """Answer with the entries of some paths, files and folders; unknown ones are left out."""
        repository = self.repository(match["kind"], match["name"], content=False)
        if repository is None:
            return
        found = repository.at(unquote(match["rest"]))
        if found is None:
            return self.refuse(404, "RevisionNotFound", f"Invalid rev id: {match['rest']}")
        asked = json.loads(data)["paths"] if data.startswith(b"{") else parse_qs(data.decode()).get("paths", [])
        entries = [_entry(path, found[1][path]) for path in asked if path in found[1]]
        entries += [_folder(path) for path in asked if any(name.startswith(f"{path}/") for name in found[1])]
        return self.send_json(entries)

    def resolve(self, match: re.Match[str]) -> None:
        kind = "datasets" if match["kind"] else "models"
        repository = self.repository(kind, match["name"], content=True)
        if repository is None:
            return
        found = repository.at(unquote(match["revision"]))
        if found is None:
            return self.refuse(404, "RevisionNotFound", f"Invalid rev id: {match['revision']}")
        commit, files = found
        path = match["path"]
        if path not in files:
            return self.refuse(404, "EntryNotFound", "Entry not found")
        data = files[path]
        headers = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if len(data) < LARGE:
            return self.send_content(path, data, headers | {"ETag": f'"{_blob(data)}"'})
        sha256 = hashlib.sha256(data).hexdigest()
        linked = {"X-Linked-Size": str(len(data)), "X-Linked-ETag": f'"{sha256}"'}
        location = {"Location": f"{self.hub.content}/{sha256}/{quote(path)}"}
        return self.send(302, headers=headers | linked | location)

    # ------------------------------------------------------------------------------------------------ push

    def do_POST(self) -> None:
        path, data = unquote(urlsplit(self.path).path), self.body()
        self.hub.requests[f"POST {path}"] += 1
        if self.limited():
            return None
        match = _API.fullmatch(path)
        if match and match["call"] == "paths-info":
            return self.paths(match, data)
        if not self.known():
            return self.refuse(401, "", "Invalid username or password.")
        if path == "/api/repos/create":
            return self.create(json.loads(data))
        if path == "/api/validate-yaml":
            return self.send_json({"errors": [], "warnings": []})
        if path.endswith("/info/lfs/objects/batch"):
            return self.batch(json.loads(data))
        if match and match["call"] == "preupload":
            files = [
                {"path": f["path"], "uploadMode": "lfs" if f["size"] >= LARGE else "regular", "shouldIgnore": False}
                for f in json.loads(data)["files"]
            ]
            return self.send_json({"files": files})
        if match and match["call"] == "commit":
            return self.commit(f"{match['kind']}/{match['name']}", data)
        return self.refuse(404, "", f"no such call: {path}")

    def create(self, about: dict[str, Any]) -> None:
        name = f"{about.get('type', 'model')}s/{about.get('organization', 'owner')}/{about['name']}"
        url = f"{self.hub.endpoint}/{name.removeprefix('models/')}"
        if name in self.hub.repositories:
            return self.send(409, json.dumps({"error": "exists", "url": url}).encode())
        self.hub.add(name, {".gitattributes": b"*.parquet filter=lfs\n"}, access="private")
        return self.send_json({"url": url, "name": name, "id": name})

    def batch(self, asked: dict[str, Any]) -> None:
        objects = [
            {**o, "actions": {"upload": {"href": f"{self.hub.content}/{o['oid']}", "header": {}}}}
            for o in asked["objects"]
        ]
        self.send_json({"transfer": "basic", "objects": objects})

    def commit(self, name: str, data: bytes) -> None:
        files = dict(self.hub.repositories[name].files)
        for line in map(json.loads, data.splitlines()):
            key, value = line["key"], line["value"]
            if key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self.hub.uploaded[value["oid"]]
            elif key == "deletedFile":
                del files[value["path"]]
        commit = self.hub.repositories[name].commit(files)
        url = f"{self.hub.endpoint}/{name.removeprefix('models/')}/commit/{commit}"
        self.send_json({"success": True, "commitUrl": url, "commitOid": commit, "pullRequestUrl": None})


def _entry(path: str, data: bytes) -> dict[str, Any]:
    about = {"type": "file", "path": path, "size": len(data), "oid": _blob(data)}
    if len(data) >= LARGE:
        about["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
    return about


def _folder(path: str) -> dict[str, Any]:
    return {"type": "directory", "path": path, "size": 0, "oid": _blob(path.encode())}


def _blob(data: bytes) -> str:
    """Return the id that git gives a file."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@contextmanager
def serve() -> Iterator[Hub]:
    """Serve an empty Hub while the block runs."""
    hub = Hub()
    handlers = [type(kind.__name__, (kind,), {"hub": hub}) for kind in (_Hub, _Content)]
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), handler) for handler in handlers]
    hub.endpoint = f"http://127.0.0.1:{servers[0].server_port}"
    hub.content = f"http://localhost:{servers[1].server_port}"
    for server in servers:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()
