"""`cortex status` against one gateway's answer."""

import json
import os
import pty
import socket
import subprocess
import sys

import pytest

from cortex_cli.context import ConfigurationError, style_of
from cortex_core.codec import encode_json
from cortex_core.fleet.overview import FleetOverview, NodeView
from cortex_core.ids import NodeName
from tests.cli.conftest import Run, Serve

NODE = NodeView(name=NodeName("node-0"), endpoint="http://127.0.0.1:1", health="up")
WELL = encode_json(FleetOverview(status="ok", revision=7, nodes=(NODE,)))
DEGRADED = encode_json(FleetOverview(status="degraded", nodes=(NODE,)))


def test_fleet_that_is_well_is_shown_with_status_zero(cortex: Run, serve: Serve) -> None:
    """Contract: 0 fine."""
    done = cortex("status", "--endpoint", serve(200, WELL))

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("fleet ok: 1 of 1 nodes up\n")
    assert "\x1b" not in done.stdout


def test_degraded_fleet_is_shown_with_status_one(cortex: Run, serve: Serve) -> None:
    """Contract: 1 the fleet is not fine."""
    done = cortex("status", environ={"CORTEX_ENDPOINT": serve(200, DEGRADED) + "/"})

    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.startswith("fleet degraded")


def test_json_is_what_the_gateway_said(cortex: Run, serve: Serve) -> None:
    """Ours: `--json` shows the same data, with the same status."""
    done = cortex("status", "--json", "--endpoint", serve(200, WELL))

    assert done.returncode == 0
    assert json.loads(done.stdout) == json.loads(WELL)


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (404, b"{}", "answered 404; is this the address of a cortex gateway?"),
        (500, b"", "answered 500"),
        (200, b"<html>", "the answer cannot be read"),
        (200, b'{"nodes": 3}', "the answer cannot be read"),
    ],
)
def test_other_answers_are_one_line_and_status_one(
    cortex: Run, serve: Serve, status: int, body: bytes, said: str
) -> None:
    """Contract: 1 an answer is not fine."""
    done = cortex("status", "--endpoint", serve(status, body))

    assert (done.returncode, done.stdout) == (1, "")
    assert len(done.stderr.splitlines()) == 1
    assert said in done.stderr


def test_gateway_that_is_not_there_is_one_line_and_status_one(cortex: Run) -> None:
    """Contract: 1 the fleet is not fine."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

    done = cortex("status", "--endpoint", f"http://127.0.0.1:{port}")

    assert done.returncode == 1
    assert done.stderr == (
        f"cortex: http://127.0.0.1:{port}/admin/fleet: cannot be reached: connection refused\n"
    )


@pytest.mark.parametrize("endpoint", ["beast", "ftp://beast", "http://", "http://a:99999"])
def test_endpoint_that_is_no_url_is_wrong_usage(cortex: Run, endpoint: str) -> None:
    """Contract: 2 usage or configuration."""
    done = cortex("status", "--endpoint", endpoint)

    assert done.returncode == ConfigurationError.exit_code == 2
    assert done.stderr.startswith(f"cortex: '{endpoint}' is no endpoint; use a URL such as ")


def test_terminal_gets_colours_unless_it_asks_for_none(serve: Serve) -> None:
    """no-color.org: a non-empty NO_COLOR turns colours off."""
    endpoint = serve(200, WELL)

    painted = _on_terminal(endpoint, {"TERM": "xterm", "NO_COLOR": ""})
    plain = _on_terminal(endpoint, {"TERM": "xterm", "NO_COLOR": "1"})

    assert b"\x1b[32mok\x1b[0m" in painted
    assert b"fleet ok" in plain
    assert b"\x1b" not in plain


def test_output_in_another_encoding_is_ascii(cortex: Run, serve: Serve) -> None:
    """Ours: a bar must not end in an encoding error."""
    done = cortex("status", "--endpoint", serve(200, WELL), environ={"PYTHONIOENCODING": "latin-1"})

    assert done.returncode == 0
    assert done.stdout.isascii()


def test_style_of_a_file_has_no_colours(tmp_path: os.PathLike[str]) -> None:
    """Ours: colours are for terminals."""
    with open(os.path.join(tmp_path, "x"), "w", encoding="utf-8") as stream:
        assert style_of(stream, {}) == style_of(stream, {"NO_COLOR": "1"})
        assert style_of(stream, {}).is_unicode


def _on_terminal(endpoint: str, environ: dict[str, str]) -> bytes:
    master, slave = pty.openpty()
    try:
        done = subprocess.run(
            [sys.executable, "-m", "cortex_cli", "status", "--endpoint", endpoint],
            stdin=slave, stdout=slave, stderr=slave, timeout=30, check=False,
            env={**os.environ, **environ},
        )  # fmt: skip
        assert done.returncode == 0
        return os.read(master, 1 << 16)
    finally:
        os.close(master)
        os.close(slave)
