"""How each gateway is installed and started; none of them is needed.

Options as their own help says, November 2026. Retries and breakers are left as they come; logs
are as quiet as they go, but for ours, which writes its line per request.
"""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping

import msgspec

from benchmarks.upstream import MODEL

KEY = "sk-bench"


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """One gateway."""

    name: str
    version: Callable[[pathlib.Path], str]
    """Installs it into a folder where need be, and returns its version; raises `LookupError` with
    the cure when it cannot."""
    command: Callable[[pathlib.Path, int, int], list[str]]
    """Returns what starts it: its folder, its port, the node's port."""
    headers: Callable[[int], Mapping[str, str]] = lambda node: {}
    """Returns what its callers have to send, by the node's port."""
    environ: Mapping[str, str] = msgspec.field(default_factory=dict)
    is_slow: bool = False
    """Gets less of every load, which would take it minutes."""
    has_vitals: bool = False
    """Says under `/metrics` of the port after its own by how much its event loop is late."""


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LookupError((done.stderr or done.stdout).strip().splitlines()[-1])
    return done.stdout + done.stderr


def _debian(program: str, flag: str) -> Callable[[pathlib.Path], str]:
    def version(folder: pathlib.Path) -> str:
        path = shutil.which(program) or shutil.which(program, path="/usr/sbin")
        if path is None:
            raise LookupError(f"apt-get install {program}")
        said = _run(path, flag)
        found = re.search(r"\d+\.\d+\.\d+\S*", said)
        return found[0] if found else said.strip()

    return version


def _wheel(requirement: str) -> Callable[[pathlib.Path], str]:
    name = requirement.partition("[")[0]

    def version(folder: pathlib.Path) -> str:
        python = folder / "bin" / "python"
        if not python.exists():
            _run(sys.executable, "-m", "venv", str(folder))
            _run(str(python), "-m", "pip", "install", "-q", requirement)
        ask = f"import importlib.metadata as m; print(m.version({name!r}))"
        return _run(str(python), "-c", ask).strip()

    return version


def _portkey(folder: pathlib.Path) -> str:
    package = folder / "node_modules" / "@portkey-ai" / "gateway"
    if shutil.which("npm") is None:
        raise LookupError("apt-get install npm")
    if not package.exists():
        folder.mkdir(parents=True, exist_ok=True)
        _run("npm", "install", "--silent", "--prefix", str(folder), "@portkey-ai/gateway")
    return str(json.loads((package / "package.json").read_text())["version"])


def _nginx(folder: pathlib.Path, port: int, node: int) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    temporary = "".join(
        f"{kind}_temp_path {folder}/{kind};"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        f"daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log crit;"
        "worker_rlimit_nofile 20000; events { worker_connections 20000; }"
        f"http {{ access_log off; client_max_body_size 100m; {temporary}"
        f"upstream node {{ server 127.0.0.1:{node}; keepalive 64; }}"
        f"server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://node;"
        'proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off;'
        "proxy_request_buffering off; } } }"
    )
    program = shutil.which("nginx") or "/usr/sbin/nginx"
    return [program, "-c", str(folder / "nginx.conf"), "-p", str(folder)]


def _haproxy(folder: pathlib.Path, port: int, node: int) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ha.cfg").write_text(
        "global\n nbthread 1\n maxconn 9000\ndefaults\n mode http\n timeout connect 5s\n"
        " timeout client 60s\n timeout server 60s\n http-reuse always\n"
        # Its manual asks for this where answers come in pieces; it holds them back without.
        " option http-no-delay\n"
        f"frontend f\n bind 127.0.0.1:{port}\n default_backend b\n"
        f"backend b\n server s 127.0.0.1:{node}\n"
    )
    program = shutil.which("haproxy") or "/usr/sbin/haproxy"
    return [program, "-db", "-f", str(folder / "ha.cfg")]


def _router(program: str, *start: str) -> Callable[[pathlib.Path, int, int], list[str]]:
    def command(folder: pathlib.Path, port: int, node: int) -> list[str]:
        metrics = port + 1
        return [
            str(folder / "bin" / program),
            *start,
            *("--worker-urls", f"http://127.0.0.1:{node}", "--host", "127.0.0.1"),
            *("--port", str(port), "--policy", "round_robin", "--prometheus-port", str(metrics)),
            *("--prometheus-host", "127.0.0.1", "--max-concurrent-requests", "8192"),
        ]

    return command


def _litellm(folder: pathlib.Path, port: int, node: int) -> list[str]:
    (folder / "lit.yaml").write_text(
        f"model_list:\n - model_name: {MODEL}\n   litellm_params:\n"
        f"    model: openai/{MODEL}\n    api_base: http://127.0.0.1:{node}/v1\n    api_key: x\n"
        f"general_settings:\n master_key: {KEY}\n"
    )
    program = str(folder / "bin" / "litellm")
    config = str(folder / "lit.yaml")
    return [program, "--config", config, "--host", "127.0.0.1", "--port", str(port)]


# It adds headers to what `fetch` returned, which may not be changed: a TypeError, and a 500 on
# every stream, with each Node and Hono that was tried. Plain answers are left as they come.
_PORTKEY_MEND = """\
const { fetch, Response, Headers } = globalThis;
globalThis.fetch = async (...asked) => {
  const got = await fetch(...asked);
  if (!(got.headers.get("content-type") ?? "").startsWith("text/event-stream")) return got;
  return new Response(got.body, { status: got.status, headers: new Headers(got.headers) });
};
"""


def _portkey_command(folder: pathlib.Path, port: int, node: int) -> list[str]:
    server = folder / "node_modules" / "@portkey-ai" / "gateway" / "build" / "start-server.js"
    mend = folder / "mend.mjs"
    mend.write_text(_PORTKEY_MEND)
    return ["node", "--import", mend.as_uri(), str(server), "--headless", f"--port={port}"]


def _cortex_version(folder: pathlib.Path) -> str:
    return "of this checkout"


def _cortex(folder: pathlib.Path, port: int, node: int) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "models.toml").write_text(f'[[models]]\nid = "{MODEL}"\nharness = "none"\n')
    (folder / "cortex.toml").write_text(
        f'models_config = "models.toml"\n[gateway]\nlisten = "127.0.0.1:{port}"\n'
        f'metrics_listen = "127.0.0.1:{port + 1}"\n'
        # The node does not say how many requests it runs together, and has room for all.
        "[gateway.queue]\nmax_in_flight = 8192\n"
        f'[[neurons]]\nname = "node"\nendpoint = "http://127.0.0.1:{node}"\n'
    )
    return [sys.executable, "-m", "cortex_gateway", "--config", str(folder / "cortex.toml")]


def _bare(folder: pathlib.Path, port: int, node: int) -> list[str]:
    return [sys.executable, "-m", "benchmarks.bare", str(port), f"http://127.0.0.1:{node}"]


_OURS = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}

PLACES = (
    Place(name="nginx", version=_debian("nginx", "-v"), command=_nginx),
    Place(name="haproxy", version=_debian("haproxy", "-v"), command=_haproxy),
    Place(
        name="vllm-router",
        version=_wheel("vllm-router"),
        command=_router("vllm-router", "--log-level", "warning"),
    ),
    Place(
        name="sglang-router",
        version=_wheel("sglang-router"),
        command=_router("sglang-router", "launch", "--log-level", "warn"),
    ),
    Place(
        name="smg", version=_wheel("smg"), command=_router("smg", "launch", "--log-level", "warn")
    ),
    # What of the next one is HTTP, and not its own.
    Place(name="bare", version=_cortex_version, command=_bare, environ=_OURS),
    Place(
        name="cortex",
        version=_cortex_version,
        command=_cortex,
        environ=_OURS,
        has_vitals=True,
    ),
    Place(
        name="portkey",
        version=_portkey,
        command=_portkey_command,
        headers=lambda node: {
            "x-portkey-provider": "openai",
            "x-portkey-custom-host": f"http://127.0.0.1:{node}/v1",
            "authorization": f"Bearer {KEY}",
        },
        is_slow=True,
    ),
    Place(
        name="litellm",
        version=_wheel("litellm[proxy]"),
        command=_litellm,
        headers=lambda node: {"authorization": f"Bearer {KEY}"},
        # It takes a hundred equal chunks for a model that is stuck.
        environ={"REPEATED_STREAMING_CHUNK_LIMIT": "1000000000"},
        is_slow=True,
    ),
)
"""From the lightest to the heaviest."""
