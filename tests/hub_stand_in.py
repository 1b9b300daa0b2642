"""A stand-in of the Hugging Face Hub on this machine: as much of its API as its client needs for one small model."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_stand_in"
LISTS = {"tags": [], "siblings": []}  # in the Hub's answer about a model


class Hub(ThreadingHTTPServer):
    """Holds models: of each the branches, and of each commit its files.

    Attributes:
        models: id -> branch -> commit.
        commits: commit -> path -> content.
        private: ids of private models.
        asked: methods and paths of the requests, in order.
        refusing: the status with which every upload is refused; None: uploads are taken.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.models: dict[str, dict[str, str]] = {}
        self.commits: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.asked: list[tuple[str, str]] = []
        self.refusing: int | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def files(self, model: str, branch: str = "main") -> dict[str, bytes]:
        return self.commits[self.models[model][branch]]

    def put(self, model: str, branch: str, files: dict[str, bytes], deleted: Collection[str] = ()) -> str:
        """Commit files beside those that are there without `deleted`, and return the commit."""
        branches = self.models.setdefault(model, {})
        before = self.commits.get(branches.get(branch, ""), {})
        whole = {path: data for path, data in before.items() if path not in deleted} | files
        text = json.dumps([model, branch, {path: hashlib.sha1(data).hexdigest() for path, data in whole.items()}])
        commit = hashlib.sha1(text.encode()).hexdigest()
        branches[branch], self.commits[commit] = commit, whole
        return commit


@contextmanager
def stand_in() -> Iterator[Hub]:
    """A context with a Hub that answers on a free port of this machine."""
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()


def client_environment(hub: Hub | None, home: Path, token: str | None = TOKEN) -> dict[str, str]:
    """The variables that send the Hub's client to a stand-in, with a cache of its own; hub None: to a closed port."""
    found = {"HF_ENDPOINT": hub.address if hub else "http://127.0.0.1:9", "HF_HOME": str(home)}
    found |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    return found | ({"HF_TOKEN": token} if token else {})


class _Answers(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *arguments: Any) -> None:
        pass

    def _json(self, value: Any, status: int = 200, **headers: str) -> None:
        self._bytes(json.dumps(value).encode(), status, headers | {"Content-Type": "application/json"})

    def _bytes(self, data: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _missing(self, code: str) -> None:
        self._json({"error": code}, 404, **{"X-Error-Code": code, "X-Error-Message": code})

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_POST(self) -> None:
        path, body = unquote(urlsplit(self.path).path), self._body()
        self.server.asked.append(("POST", path))
        if self.server.refusing or self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._json({"error": "refused"}, self.server.refusing or 401)
        elif path == "/api/repos/create":
            asked = json.loads(body)
            model = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
            if model in self.server.models:
                self._json({"error": "exists", "url": f"{self.server.address}/{model}"}, 409)
                return
            self.server.put(model, "main", {})
            if asked.get("private") or asked.get("visibility") == "private":  # by older clients, by newer ones
                self.server.private.add(model)
            self._json({"url": f"{self.server.address}/{model}", "id": model, "name": model})
        elif path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        else:
            self._post_to_model(path, body)

    def _post_to_model(self, path: str, body: bytes) -> None:
        _, _, _, owner, name, task, branch = path.split("/", 6)
        model = f"{owner}/{name}"
        if task == "preupload":
            files = [file["path"] for file in json.loads(body)["files"]]
            self._json({"files": [{"path": f, "uploadMode": "regular", "shouldIgnore": False} for f in files]})
        elif task == "branch":
            known = self.server.models[model]
            known.setdefault(branch, known["main"])
            self._json({})
        else:
            lines = [json.loads(line) for line in body.splitlines()]
            files = {line["value"]["path"]: line["value"]["content"] for line in lines if line["key"] == "file"}
            deleted = {line["value"]["path"] for line in lines if line["key"] == "deletedFile"}
            files = {path: base64.b64decode(data) for path, data in files.items()}
            commit = self.server.put(model, branch, files, deleted)
            address = f"{self.server.address}/{model}/commit/{commit}"
            self._json({"success": True, "commitUrl": address, "commitOid": commit, "hookOutput": ""})

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append((self.command, path))
        parts = path.strip("/").split("/")
        api = parts[:2] == ["api", "models"]
        model = "/".join(parts[2:4] if api else parts[:2])
        if model not in self.server.models:
            self._missing("RepoNotFound")
            return
        revision = parts[5] if api and len(parts) > 5 else "main" if api else parts[3]
        commit = self.server.models[model].get(revision, revision)
        if commit not in self.server.commits:
            self._missing("RevisionNotFound")
            return
        files = self.server.commits[commit]
        if not api:
            self._file("/".join(parts[4:]), files, commit)
        elif len(parts) > 4 and parts[4] == "tree":
            sizes = {path: len(data) for path, data in files.items()}
            self._json([{"type": "file", "path": p, "size": n, "oid": _hash(files[p])} for p, n in sizes.items()])
        else:
            self._json({"id": model, "modelId": model, "sha": commit, "private": model in self.server.private} | LISTS)

    def _file(self, name: str, files: dict[str, bytes], commit: str) -> None:
        if name not in files:
            self._missing("EntryNotFound")
            return
        self._bytes(files[name], headers={"ETag": f'"{_hash(files[name])}"', "X-Repo-Commit": commit})


def _hash(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()
