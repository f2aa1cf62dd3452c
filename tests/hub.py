"""A stand-in of the Hugging Face hub: serves a folder over HTTP on this machine, and can be killed.

    python tests/hub.py FOLDER PORT [LIMIT]

FOLDER has models/OWNER/NAME/... or models/NAME/..., and datasets/OWNER/NAME/.... Every revision is answered
with the same files. Asked for the LIMIT-th part of a data set, it ends without an answer, as in a power cut.
"""

import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

API = re.compile(
    r"/api/(?P<kind>models|datasets)/(?P<name>.+?)(?:/(?P<what>revision|tree|paths-info)/(?P<rev>[^/]+)(?P<path>/.*)?)?$"
)
FILE = re.compile(r"/(?P<kind>datasets/)?(?P<name>.+?)/resolve/(?P<rev>[^/]+)/(?P<path>.+)$")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """Answers what the hub library asks to list and to read files."""

    protocol_version = "HTTP/1.1"
    root: Path
    parts_left: float = float("inf")

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if found := API.match(path):
            self._describe(found)
        elif found := FILE.match(path):
            self._send_file(found)
        else:
            self._send(404, b"{}")

    do_HEAD = do_POST = do_GET  # noqa: N815  (names of the base class)

    def log_message(self, *_: Any) -> None:
        pass

    def _folder(self, kind: str, name: str) -> Path:
        return self.root / kind / name

    def _describe(self, found: "re.Match[str]") -> None:
        length = int(self.headers.get("Content-Length") or 0)
        asked = self.rfile.read(length) if length else b""
        folder = self._folder(found["kind"], found["name"])
        if not folder.is_dir():
            self._missing("RepoNotFound")
            return
        files = [self._entry(folder, file) for file in sorted(folder.rglob("*")) if file.is_file()]
        if found["what"] == "tree":
            self._send_json(files)
        elif found["what"] == "paths-info":
            wanted = unquote(asked.decode())
            self._send_json([entry for entry in files if entry["path"] in wanted])
        else:
            siblings = [{"rfilename": entry["path"]} for entry in files]
            self._send_json({"id": found["name"], "sha": _commit(found["rev"]), "siblings": siblings})

    def _entry(self, folder: Path, file: Path) -> dict[str, Any]:
        path = file.relative_to(folder).as_posix()
        return {"type": "file", "path": path, "size": file.stat().st_size, "oid": _etag(file)}

    def _send_file(self, found: "re.Match[str]") -> None:
        file = self._folder("datasets" if found["kind"] else "models", found["name"]) / found["path"]
        if not file.is_file():
            self._missing("EntryNotFound")
            return
        whole = file.read_bytes()
        headers = {
            "ETag": f'"{_etag(file)}"',
            "X-Repo-Commit": _commit(found["rev"]),
            "Accept-Ranges": "bytes",
        }
        if found["kind"] and self.command == "GET":
            Hub.parts_left -= 1
            if Hub.parts_left < 0:
                os._exit(1)
        if limits := re.match(r"bytes=(\d+)-(\d*)$", self.headers.get("Range", "")):
            first, last = int(limits[1]), min(int(limits[2] or len(whole) - 1), len(whole) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(whole)}"
            self._send(206, whole[first : last + 1], headers)
        else:
            self._send(200, whole, headers)

    def _missing(self, code: str) -> None:
        self._send(404, b"{}", {"X-Error-Code": code, "X-Error-Message": code})

    def _send_json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _commit(revision: str | None) -> str:
    return revision if revision and re.fullmatch("[0-9a-f]{40}", revision) else COMMIT


def _etag(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()


class Server:
    """The stand-in as a process, for as long as a `with` lasts."""

    def __init__(self, root: Path) -> None:
        self._root = root
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self._port}"
        self._limit: int | None = None

    def dies_after(self, parts: int) -> "Server":
        """Let the next process end by itself, asked for one part of a data set more than these."""
        self._limit = parts
        return self

    def __enter__(self) -> None:
        command = [sys.executable, __file__, str(self._root), str(self._port)]
        command += [] if self._limit is None else [str(self._limit)]
        self._limit = None
        self._process = subprocess.Popen(command)
        for _ in range(100):
            with socket.socket() as one:
                if one.connect_ex(("127.0.0.1", self._port)) == 0:
                    return
            time.sleep(0.1)
        raise TimeoutError(f"nothing answers at {self.url}")

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def died(self) -> bool:
        return self._process.poll() is not None


if __name__ == "__main__":
    Hub.root = Path(sys.argv[1])
    if len(sys.argv) > 3:
        Hub.parts_left = int(sys.argv[3])
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[2])), Hub).serve_forever()
