"""A server on this machine that answers huggingface_hub as the hub does, for the calls we make.

It knows: making a repository, asking how files travel, LFS uploads, commits, the state and the
files of a repository, downloads. Repositories live in memory; a commit hash is the SHA-1 of their
files.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Hub(ThreadingHTTPServer):
    """Everything the server knows."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos: dict[str, dict[str, dict[str, bytes]]] = {}  # name -> commit -> file -> bytes
        self.heads: dict[str, str] = {}
        self.blobs: dict[str, bytes] = {}  # LFS objects by SHA-256
        self.private: dict[str, bool] = {}
        self.requests: list[str] = []

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def hub() -> Iterator[Hub]:
    """A running server."""
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        self.server.requests.append(format % args)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = self.path.split("?")[0]
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            if name in self.server.repos:
                return self._json({"url": f"{self.server.endpoint}/{name}"}, 409)
            self.server.repos[name] = {}
            self.server.private[name] = bool(
                asked.get("private", asked.get("visibility") == "private")
            )
            self._commit(name, {})
            return self._json({"url": f"{self.server.endpoint}/{name}"})
        if path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if found := re.fullmatch(r"/api/models/(.+?/.+?)/preupload/(.+)", path):
            files = json.loads(body)["files"]
            return self._json(
                {
                    "files": [
                        {
                            "path": file["path"],
                            "uploadMode": "lfs" if file["path"].endswith("tensors") else "regular",
                            "shouldIgnore": False,
                            "oid": None,
                        }
                        for file in files
                    ]
                }
            )
        if path.endswith(".git/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            for item in objects:
                href = f"{self.server.endpoint}/lfs/{item['oid']}"
                item["actions"] = {"upload": {"href": href}}
            return self._json({"transfer": "basic", "objects": objects})
        if found := re.fullmatch(r"/api/models/(.+?/.+?)/commit/(.+)", path):
            return self._json(self._apply(found[1], body.decode()))
        return self._json({"error": "no such route"}, 404)

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        digest = self.path.rsplit("/", 1)[1]
        right = hashlib.sha256(content).hexdigest() == digest
        if right:
            self.server.blobs[digest] = content
        self._json({}, 200 if right else 400)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            commit = self._resolve(found[1], found[2] or "main")
            if commit is None:
                return None
            files = self.server.repos[found[1]][commit]
            siblings = [{"rfilename": name} for name in files]
            return self._json({"id": found[1], "sha": commit, "siblings": siblings, "tags": []})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)/?.*", path):
            commit = self._resolve(found[1], found[2])
            if commit is None:
                return None
            files = self.server.repos[found[1]][commit]
            return self._json(
                [
                    {"type": "file", "path": name, "size": len(content), "oid": _sha1(content)}
                    for name, content in files.items()
                ]
            )
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            commit = self._resolve(found[1], found[2])
            if commit is None:
                return None
            content = self.server.repos[found[1]][commit].get(found[3])
            if content is None:
                return self._json({"error": "no file"}, 404, {"X-Error-Code": "EntryNotFound"})
            return self._send(
                content,
                200,
                {
                    "ETag": f'"{_sha1(content)}"',
                    "X-Repo-Commit": commit,
                    "Content-Type": "application/octet-stream",
                },
            )
        return self._json({"error": "no such route"}, 404)

    def _resolve(self, name: str, revision: str) -> str | None:
        """The commit, or None after an answer that there is none."""
        if name not in self.server.repos:
            self._json({"error": "none"}, 404, {"X-Error-Code": "RepoNotFound"})
            return None
        commit = self.server.heads[name] if revision == "main" else revision
        if commit not in self.server.repos[name]:
            self._json({"error": "none"}, 404, {"X-Error-Code": "RevisionNotFound"})
            return None
        return commit

    def _apply(self, name: str, lines: str) -> dict[str, object]:
        files = dict(self.server.repos[name][self.server.heads[name]])
        for line in filter(None, lines.splitlines()):
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.server.blobs[value["oid"]]
        commit = self._commit(name, files)
        return {
            "success": True,
            "commitOid": commit,
            "commitUrl": f"{self.server.endpoint}/{name}/commit/{commit}",
        }

    def _commit(self, name: str, files: dict[str, bytes]) -> str:
        commit = _sha1(repr(sorted((k, _sha1(v)) for k, v in files.items())).encode())
        self.server.repos[name][commit] = files
        self.server.heads[name] = commit
        return commit

    def _json(
        self, content: object, status: int = 200, headers: dict[str, str] | None = None
    ) -> None:
        kind = {"Content-Type": "application/json"}
        self._send(json.dumps(content).encode(), status, kind | (headers or {}))

    def _send(self, content: bytes, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _sha1(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()
