"""A hub of repositories on the loopback interface, for the real client; it can misbehave."""

from __future__ import annotations

import hashlib
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

_FILE = re.compile(r"/([\w.-]+/[\w.-]+)/resolve/([^/]+)/(.+)")


class Hub:
    """Serves directories as repositories: `with Hub() as hub: hub.repos["org/name"] = {...}`.

    repos: for each repository, the directory of each revision. tokens: the one that a repository
    asks for. failures: what goes wrong with every request for a repository (key "org/name") or with
    the download of one file (key "org/name/file"): a status, "cut" (the body breaks off in the
    middle), "short" (it is shorter than was announced), "hang", "bare" (no headers of a hub),
    "move" (after it, main is what was next); a request for /heal/org/name ends them. asked:
    (method, repository, revision, file) of every request, in order.
    """

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, Path]] = {}
        self.tokens: dict[str, str] = {}
        self.failures: dict[str, int | str] = {}
        self.asked: list[tuple[str, str, str, str]] = []

    def __enter__(self) -> Hub:
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def find(self, repo: str, revision: str) -> Path | None:
        """The directory of a branch, a tag or a commit."""
        revisions = self.repos[repo]
        return revisions.get(revision) or next(
            (path for path in revisions.values() if commit(path) == revision), None)


def commit(directory: Path) -> str:
    """What stands for the commit of a directory: the same name, the same commit."""
    return hashlib.sha1(str(directory).encode()).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_HEAD(self) -> None:
        self._respond()

    def do_GET(self) -> None:
        self._respond()

    def log_message(self, *_: object) -> None:  # quiet
        pass

    def _respond(self) -> None:
        hub, path = self.hub, self.path
        if path.startswith("/heal/"):
            healed = path.removeprefix("/heal/")
            hub.failures = {k: v for k, v in hub.failures.items() if not k.startswith(healed)}
            return self._say(200)
        match = _FILE.fullmatch(path)
        if not match:
            hub.asked.append((self.command, "", "", path))
            return self._say(404)
        repo, revision, name = map(unquote, match.groups())
        hub.asked.append((self.command, repo, revision, name))
        token = hub.tokens.get(repo)
        if repo not in hub.repos or (
                token and self.headers.get("Authorization") != f"Bearer {token}"):
            return self._say(401, {"X-Error-Code": "RepoNotFound"})
        failure = hub.failures.get(repo)
        if self.command == "GET":
            failure = hub.failures.get(f"{repo}/{name}", failure)
        if isinstance(failure, int):
            return self._say(failure, {"X-Error-Code": "GatedRepo"} if failure == 403 else {})
        if failure == "hang":
            time.sleep(11)  # the client waits for 10 seconds
        directory = hub.find(repo, revision)
        if directory is None:
            return self._say(404, {"X-Error-Code": "RevisionNotFound"})
        sha, file = commit(directory), directory / name
        if ".." in name or not file.is_file():
            return self._say(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": sha})
        data = file.read_bytes()
        etag = f'"{hashlib.sha256(data).hexdigest()}"'
        headers = {"ETag": etag, "X-Repo-Commit": sha, "X-Linked-Etag": etag,
                   "X-Linked-Size": str(len(data)), "Accept-Ranges": "bytes"}
        self._send(data, {} if failure == "bare" else headers, failure)
        if failure == "move":
            hub.repos[repo] = {"main": hub.repos[repo]["next"], "last": directory}
        return None

    def _say(self, status: int, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {**(headers or {}), "Content-Length": "0"}.items():
            self.send_header(key, value)
        self.end_headers()

    def _send(self, data: bytes, headers: dict[str, str], failure: object = None) -> None:
        whole = len(data)
        start = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        first = int(start[1]) if start else 0
        if failure == "short" and self.command == "GET":
            data = data[:whole // 2]
        body = data[first:]
        self.send_response(206 if start else 200)
        if start:
            headers = {**headers, "Content-Range": f"bytes {first}-{whole - 1}/{whole}"}
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if failure == "cut":
            body = data[first:whole // 2]
            self.close_connection = True
        self.wfile.write(body)
