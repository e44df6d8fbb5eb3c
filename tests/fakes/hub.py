"""A hub on loopback that gives what a test puts there, with the faults that a hub may have.

It answers what `neuron.weights.fetch` has huggingface_hub 2.4 ask: `GET /api/models/ID/revision/
REVISION?blobs=True`, and `GET /ID/resolve/COMMIT/PATH`, which for large files is a redirect to
another host, with ranges. Statuses and headers are those of the hub's guide "Errors" and of
`huggingface_hub.utils._http.hf_raise_for_status`.
"""

import contextlib
import hashlib
import http.server
import json
import threading
import urllib.parse
from collections.abc import Iterator, Mapping

COMMIT = "c0ffee" * 6 + "c0de"
"""Of every model, 40 digits."""

LARGE_BYTES = 1000
"""Files of this size and more are large ones (LFS), as on the hub by their names."""

_CHUNK_BYTES = 64 << 10


class FakeHub:
    """What the hub has and how it behaves; may be changed while it serves."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.models: dict[str, dict[str, bytes]] = {}
        """Files by path, of each model."""
        self.needs_token: dict[str, str] = {}
        """Models that only this token sees."""
        self.gated: set[str] = set()
        """Models that nobody is given the files of."""
        self.refusals: dict[str, list[int]] = {}
        """Statuses of the next answers about whatever ends with this, one after the other."""
        self.cuts: dict[str, list[int]] = {}
        """Bytes after which the next answers with a file that ends with this are cut."""
        self.corrupt: set[str] = set()
        """Files whose bytes are not those that the hub says they are."""
        self.holds: dict[str, int] = {}
        """Bytes of a file after which the answer waits for `released`."""
        self.held = threading.Event()
        """Set when an answer waits."""
        self.released = threading.Event()
        self.requests: list[tuple[str, Mapping[str, str]]] = []
        """Path and headers, in lower case, of all requests."""

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.port}"

    def paths(self, tail: str) -> list[str]:
        """Return the paths that were asked for and end with `tail`."""
        return [path for path, _ in self.requests if path.endswith(tail)]


@contextlib.contextmanager
def hub() -> Iterator[FakeHub]:
    """Serve a hub that has nothing until the context ends."""

    class Handler(_Handler):
        pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        fake = FakeHub(server.server_port)
        Handler.hub = fake
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield fake
        finally:
            fake.released.set()
            server.shutdown()
            thread.join()


class _Handler(http.server.BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_request(self, code: object = "-", size: object = "-") -> None:
        """Print nothing."""

    def handle(self) -> None:
        """Answer for as long as the caller is there."""
        with contextlib.suppress(ConnectionError):
            super().handle()

    def do_GET(self) -> None:
        """Answer as the hub does."""
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.hub.requests.append((path, headers))
        for tail, statuses in self.hub.refusals.items():
            if path.endswith(tail) and statuses:
                self._refuse(statuses.pop(0))
                return
        if path.startswith("/cdn/"):
            self._file(path.removeprefix("/cdn/"))
        elif path.startswith("/api/models/"):
            self._info(path.removeprefix("/api/models/"))
        else:
            self._resolve(path.removeprefix("/"))

    def _info(self, rest: str) -> None:
        model, _, revision = rest.partition("/revision/")
        if not self._may_see(model):
            self._refuse(404, "RepoNotFound")
        elif revision not in ("main", COMMIT):
            self._refuse(404, "RevisionNotFound")
        else:
            siblings = [_sibling(name, data) for name, data in self.hub.models[model].items()]
            body = json.dumps({"id": model, "sha": COMMIT, "siblings": siblings}).encode()
            self._head(200, {"Content-Type": "application/json", "Content-Length": len(body)})
            self.wfile.write(body)

    def _resolve(self, rest: str) -> None:
        model, _, name = rest.partition(f"/resolve/{COMMIT}/")
        if not self._may_see(model):
            self._refuse(404, "RepoNotFound")
        elif model in self.hub.gated:
            self._refuse(403, "GatedRepo")
        elif name not in self.hub.models[model]:
            self._refuse(404, "EntryNotFound")
        elif len(self.hub.models[model][name]) >= LARGE_BYTES:
            # Another host, which is not to be shown the token.
            target = f"http://localhost:{self.hub.port}/cdn/{model}/{name}"
            self._head(302, {"Location": target, "X-Repo-Commit": COMMIT, "Content-Length": 0})
        else:
            self._file(f"{model}/{name}")

    def _file(self, rest: str) -> None:
        model = next(name for name in self.hub.models if rest.startswith(f"{name}/"))
        data = self.hub.models[model][rest.removeprefix(f"{model}/")]
        if any(rest.endswith(tail) for tail in self.hub.corrupt):
            data = bytes(byte ^ 1 for byte in data[:1]) + data[1:]
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
        headers: dict[str, object] = {"Content-Length": len(data) - start}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        self._head(206 if start else 200, headers)
        self._send(rest, data, start)

    def _send(self, rest: str, data: bytes, start: int) -> None:
        stop = len(data)
        for tail, cuts in self.hub.cuts.items():
            if rest.endswith(tail) and cuts:
                stop = min(stop, start + cuts.pop(0))
        hold = next((size for tail, size in self.hub.holds.items() if rest.endswith(tail)), None)
        try:
            if hold is not None and start <= hold < stop:
                self.wfile.write(data[start:hold])
                self.wfile.flush()
                self.hub.held.set()
                self.hub.released.wait(60)
                start = hold
            for at in range(start, stop, _CHUNK_BYTES):
                self.wfile.write(data[at : min(stop, at + _CHUNK_BYTES)])
        except ConnectionError:
            stop = 0
        if stop < len(data):
            self.close_connection = True

    def _may_see(self, model: str) -> bool:
        token = self.hub.needs_token.get(model)
        given = self.headers.get("Authorization")
        return model in self.hub.models and token in (None, (given or "").removeprefix("Bearer "))

    def _refuse(self, status: int, code: str = "") -> None:
        self._head(status, {"X-Error-Code": code, "Retry-After": 0, "Content-Length": 0})

    def _head(self, status: int, headers: Mapping[str, object]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            if value != "":
                self.send_header(name, str(value))
        self.end_headers()


def _sibling(name: str, data: bytes) -> dict[str, object]:
    entry: dict[str, object] = {
        "rfilename": name,
        "size": len(data),
        "blobId": hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest(),
    }
    if len(data) >= LARGE_BYTES:
        digest = hashlib.sha256(data).hexdigest()
        entry["lfs"] = {"sha256": digest, "size": len(data), "pointerSize": 134}
    return entry
