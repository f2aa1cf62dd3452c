"""A stand-in of W&B's API on localhost: GraphQL over HTTP, which keeps what it was asked."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any, NamedTuple

_NOW = "2026-01-01T00:00:00Z"
USER = {"id": "VXNlcjox", "name": "me", "username": "me", "email": "me@example.org", "admin": False}


class Asked(NamedTuple):
    """A request."""

    query: str
    variables: dict[str, Any]


class StandIn:
    """Answers what saving a view and a report asks for; refuses to save while `refuses` is true."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.asked: list[Asked] = []
        self.views: dict[str, dict[str, Any]] = {}
        """Saved views and reports, by id."""
        self.projects: list[str] = []
        self.refuses = False

    def answer(self, asked: Asked) -> dict[str, Any]:
        self.asked.append(asked)
        if "upsertView" in asked.query:
            return self._upsert(asked.variables)
        if "CreateProject" in asked.query:
            name = asked.variables["input"]["name"]
            self.projects.append(name)
            project = {"id": "p", "name": name, "entityName": "team", "createdAt": _NOW, "isBenchmark": False}
            return {"data": {"result": {"project": project, "model": project, "inserted": True}}}
        if "ProjectInternalId" in asked.query:
            return {"data": {"project": {"id": "UHJvamVjdDox", "internalId": "UHJvamVjdEludGVybmFsSWQ6MQ=="}}}
        if "models(" in asked.query:
            return {"data": {"models": self._projects()}}
        viewer = {**USER, "entity": "team", "flags": "{}", "teams": {"edges": []}, "apiKeys": {"edges": []}}
        return {"data": {"viewer": viewer, "serverInfo": None}}

    def _upsert(self, wanted: dict[str, Any]) -> dict[str, Any]:
        if self.refuses:
            return {"errors": [{"message": "permission denied"}], "data": {"upsertView": None}}
        found = wanted.get("id") or f"id{len(self.views)}"
        inserted = found not in self.views
        self.views[found] = wanted
        project = {"id": "p", "name": wanted["projectName"], "entityName": wanted["entityName"]}
        view = {key: wanted[key] for key in ("type", "name", "displayName", "description", "spec")}
        saved = {**view, "id": found, "project": project, "updatedAt": _NOW}
        return {"data": {"upsertView": {"view": saved, "inserted": inserted}}}

    def _projects(self) -> dict[str, Any]:
        nodes = [
            {"id": name, "name": name, "entityName": "team", "createdAt": _NOW}
            | {"isBenchmark": False, "user": None}
            for name in self.projects
        ]
        page = {"endCursor": None, "hasNextPage": False}
        return {"edges": [{"node": node, "cursor": "c"} for node in nodes], "pageInfo": page}


@contextmanager
def serve() -> Iterator[StandIn]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._reply({})

        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path != "/graphql":  # reports of errors and the like
                self._reply({})
                return
            body = json.loads(content)
            self._reply(stand_in.answer(Asked(body["query"], body.get("variables") or {})))

        def _reply(self, found: dict[str, Any]) -> None:
            content = json.dumps(found).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: Any, client_address: Any) -> None:
            if not isinstance(sys.exception(), ConnectionError):  # W&B's client does not close politely
                super().handle_error(request, client_address)

    with Server(("127.0.0.1", 0), Handler) as server:
        stand_in = StandIn(f"http://127.0.0.1:{server.server_port}")
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield stand_in
        finally:
            server.shutdown()
            thread.join()
