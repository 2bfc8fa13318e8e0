"""A model hub on loopback: the requests that huggingface_hub and transformers make to download a model."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

FIRST, SECOND = "1" * 40, "2" * 40


@dataclass
class Repository:
    """A repository: the folder of each commit, and the commit to which its branch `main` points."""

    commits: dict[str, Path]
    main: str = FIRST
    gated: bool = False


@dataclass
class Hub:
    """The repositories of a hub by name, its address, and the paths that were requested."""

    repositories: dict[str, Repository]
    address: str = ""
    requests: list[str] = field(default_factory=list)


@contextmanager
def run_hub(**repositories: Repository) -> Iterator[Hub]:
    """Yield a hub that serves repositories as acme/<name>."""
    hub = Hub({f"acme/{name}": repository for name, repository in repositories.items()})
    with ThreadingHTTPServer(("127.0.0.1", 0), make_handler(hub)) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        hub.address = f"http://127.0.0.1:{server.server_port}"
        try:
            yield hub
        finally:
            server.shutdown()


def make_handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    """Return the class that answers the requests to a hub."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            hub.requests.append(self.path)
            path = self.path.partition("?")[0].strip("/").removeprefix("api/models/").split("/")
            name, action = "/".join(path[:2]), path[2:]
            if (repository := hub.repositories.get(name)) is None:
                return self.refuse(401, "RepoNotFound")
            if repository.gated:
                return self.refuse(403, "GatedRepo")
            revision = action[1] if action else "main"
            commit = repository.main if revision == "main" else revision
            if (folder := repository.commits.get(commit)) is None:
                return self.refuse(404, "RevisionNotFound")
            files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
            if action[:1] == ["resolve"]:
                return self.send_model_file(folder / "/".join(action[2:]), commit)
            if action[:1] == ["tree"]:
                subfolder = folder / "/".join(action[2:])
                entries = [describe(path, folder) for path in files if path.is_relative_to(subfolder)]
                return self.send_json(entries)
            siblings = [{"rfilename": path.relative_to(folder).as_posix()} for path in files]
            return self.send_json({"id": name, "sha": commit, "siblings": siblings})

        do_HEAD = do_GET  # noqa: N815, the name that http.server calls

        def refuse(self, status: int, code: str) -> None:
            self.send(status, b"", {"X-Error-Code": code})

        def send_json(self, content: object) -> None:
            self.send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

        def send_model_file(self, path: Path, commit: str) -> None:
            if not path.is_file():
                return self.send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
            content = path.read_bytes()
            return self.send(
                200, content, {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha256(content).hexdigest()}"'}
            )

        def send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in (headers | {"Content-Length": str(len(body))}).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    return Handler


def describe(path: Path, folder: Path) -> dict[str, object]:
    """Return the entry of a file in the listing of its repository."""
    oid = hashlib.sha1(path.read_bytes(), usedforsecurity=False).hexdigest()
    return {"type": "file", "path": path.relative_to(folder).as_posix(), "size": path.stat().st_size, "oid": oid}
