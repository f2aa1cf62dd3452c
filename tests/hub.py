"""A stand-in of the Hugging Face hub: serves a folder over HTTP on this machine, and can be killed.

    python tests/hub.py FOLDER PORT [LIMIT]

FOLDER has models/OWNER/NAME/... or models/NAME/..., and datasets/OWNER/NAME/.... Every revision is answered
with the same files. Asked for the LIMIT-th part of a data set, it ends without an answer, as in a power cut.

Models can be uploaded with the token `TOKEN`, weights by the LFS protocol. A commit that names an LFS object
which did not come is refused whole.
"""

import base64
import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:  # the process that serves starts without them
    import pytest

API = re.compile(
    r"/api/(?P<kind>models|datasets)/(?P<name>.+?)(?:/(?P<what>revision|tree|paths-info)/(?P<rev>[^/]+)(?P<path>/.*)?)?$"
)
WRITE = re.compile(r"/api/models/(?P<name>.+?)/(?P<what>preupload|commit)/(?P<rev>[^/]+)$")
LFS = re.compile(r"/(?P<name>.+?)\.git/info/lfs/objects/batch$")
OBJECT = re.compile(r"/lfs/(?P<oid>[0-9a-f]{64})$")
TOKEN = "hf_standin"
UPLOADS = "ignore:Use 'content=<:DeprecationWarning"
"""Warning in tests that upload: the hub library calls httpx in an old way."""
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

    do_HEAD = do_GET  # noqa: N815  (names of the base class)

    def do_POST(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if path == "/api/validate-yaml":
            self._send_json({"errors": [], "warnings": []} if self._body() else {})
        elif path == "/api/repos/create":
            self._writes(self._create)
        elif found := WRITE.match(path):
            self._writes(getattr(self, f"_{found['what']}"), self.root / "models" / found["name"])
        elif LFS.match(path):
            self._writes(self._batch)
        else:
            self.do_GET()

    def do_PUT(self) -> None:
        found, content = OBJECT.match(urlsplit(self.path).path), self._body()
        if not found or hashlib.sha256(content).hexdigest() != found["oid"]:
            self._send(400, b"{}")
            return
        (self.root / "lfs").mkdir(exist_ok=True)
        (self.root / "lfs" / found["oid"]).write_bytes(content)
        self._send(200, b"")

    def _writes(self, answer: Callable[..., None], *values: Any) -> None:
        if self.headers.get("Authorization") == f"Bearer {TOKEN}":
            answer(*values)
        else:
            self._body()
            self._send(401, b'{"error": "Invalid username or password."}')

    def _create(self) -> None:
        asked = json.loads(self._body())
        folder = self.root / "models" / asked["organization"] / asked["name"]
        status = 409 if folder.is_dir() else 200
        folder.mkdir(parents=True, exist_ok=True)
        self._send_json(
            {"url": f"http://{self.headers['Host']}/{asked['organization']}/{asked['name']}"}, status
        )

    def _preupload(self, _: Path) -> None:
        modes = {True: "lfs", False: "regular"}
        paths = [file["path"] for file in json.loads(self._body())["files"]]
        self._send_json(
            {
                "files": [
                    {"path": path, "uploadMode": modes[path.endswith(".safetensors")], "shouldIgnore": False}
                    for path in paths
                ]
            }
        )

    def _batch(self) -> None:
        wanted, host = json.loads(self._body())["objects"], self.headers["Host"]
        objects = [
            {**one, "actions": {"upload": {"href": f"http://{host}/lfs/{one['oid']}"}}} for one in wanted
        ]
        self._send_json({"transfer": "basic", "objects": objects})

    def _commit(self, folder: Path) -> None:
        lines = [json.loads(line) for line in self._body().splitlines()]
        files: dict[str, bytes] = {}
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                if not (stored := self.root / "lfs" / value["oid"]).is_file():
                    self._send(400, b'{"error": "an LFS object is missing"}')
                    return
                files[value["path"]] = stored.read_bytes()
        for path, content in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content)
        address = f"http://{self.headers['Host']}/{folder.parent.name}/{folder.name}/commit/{COMMIT}"
        self._send_json({"success": True, "commitUrl": address, "commitOid": COMMIT})

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def log_message(self, *_: Any) -> None:
        pass

    def _folder(self, kind: str, name: str) -> Path:
        return self.root / kind / name

    def _describe(self, found: "re.Match[str]") -> None:
        asked = self._body()
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

    def _send_json(self, value: Any, status: int = 200) -> None:
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

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
        self.root = root
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
        command = [sys.executable, __file__, str(self.root), str(self._port)]
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

    def serves(self, monkeypatch: "pytest.MonkeyPatch", cache: Path) -> None:
        """Point the hub library of this process to it, with a cache of its own and the right to write."""
        import huggingface_hub.constants

        constants = huggingface_hub.constants
        address = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, self.url)
        for name, value in {
            "HUGGINGFACE_CO_URL_TEMPLATE": address,
            "ENDPOINT": self.url,
            "HF_HUB_CACHE": str(cache),
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
        }.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setenv("HF_TOKEN", TOKEN)

    def died(self) -> bool:
        return self._process.poll() is not None


if __name__ == "__main__":
    Hub.root = Path(sys.argv[1])
    if len(sys.argv) > 3:
        Hub.parts_left = int(sys.argv[3])
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[2])), Hub).serve_forever()
