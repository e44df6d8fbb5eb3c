"""`cortex weights` against one gateway's answers."""

import json

from cortex_core.codec import encode_json
from cortex_core.fleet.overview import FleetOverview, NodeView
from cortex_core.ids import NodeName
from cortex_core.wire.weights import Disk, WeightsEntry, WeightsList, WeightsNews
from tests.cli.conftest import Run, Serve

GIB = 1 << 30
LIST = WeightsList(
    models=(
        WeightsEntry(id="org/a", revisions=("main",), size_bytes=2 * GIB, in_use=True),
        WeightsEntry(id="org/b", revisions=("v1",), size_bytes=GIB, complete=False, pinned=True),
        WeightsEntry(id="org/\x1b[2Jc", revisions=("main",), size_bytes=GIB, complete=False),
    ),
    downloads=(
        WeightsNews(id="org/\x1b[2Jc", done_bytes=GIB, total_bytes=4 * GIB, eta_s=30),
        WeightsNews(id="org/d", status="queued"),
    ),
    disk=Disk(path="/c", free_bytes=9 * GIB, used_bytes=4 * GIB, budget_bytes=8 * GIB),
)


def test_disk_of_a_node_is_a_table(cortex: Run, serve: Serve) -> None:
    """Ours: what is there, what comes, and how full the disk is."""
    done = cortex("weights", "ls", "--node", "beast", "--endpoint", serve(200, encode_json(LIST)))

    lines = done.stdout.splitlines()
    assert (done.returncode, done.stderr) == (0, "")
    assert lines[0].split() == ["NODE", "MODEL", "SIZE", "STATE", "NOTE"]
    assert lines[1].split() == ["beast", "org/a", "2.0", "GiB", "ready", "in", "use"]
    assert lines[2].split() == ["beast", "org/b", "1.0", "GiB", "incomplete", "pinned,", "v1"]
    assert lines[3].split()[-8:] == ["downloading", "1.0", "of", "4.0", "GiB,", "30", "s", "left"]
    assert lines[4].split() == ["beast", "org/d", "-", "queued"]
    assert lines[-1] == "beast: 4.0 GiB in use of a budget of 8.0 GiB, 9.0 GiB free"
    assert "\x1b" not in done.stdout


def test_upstreams_have_no_disks(cortex: Run, serve: Serve) -> None:
    """Ours: a gateway's 409 says that a node takes no commands; JSON is a list of nodes."""
    nodes = (NodeView(name=NodeName("hosted"), endpoint="http://x", health="up"),)
    overview = encode_json(FleetOverview(status="ok", nodes=nodes))
    refusal = encode_json({"error": {"message": "hosted is an upstream", "type": "x"}})
    url = serve(200, overview, {"/admin/nodes/hosted/weights": (409, refusal)})

    done = cortex("weights", "ls", "--json", "--endpoint", url)

    assert (done.returncode, json.loads(done.stdout)) == (0, [])


def test_node_that_cannot_be_asked_is_told(cortex: Run, serve: Serve) -> None:
    """Ours: with status 1."""
    nodes = (NodeView(name=NodeName("off"), endpoint="http://x", health="down"),)
    overview = encode_json(FleetOverview(status="degraded", nodes=nodes))
    refusal = encode_json({"error": {"message": "off is down", "type": "x"}})
    url = serve(200, overview, {"/admin/nodes/off/weights": (502, refusal)})

    done = cortex("weights", "ls", "--endpoint", url)

    assert (done.returncode, done.stdout) == (1, "off: off is down\n")


def test_pull_is_watched_until_it_is_there(cortex: Run, serve: Serve) -> None:
    """Ours: a line for each stage where nobody watches, the outcome at the end."""
    news = WeightsNews(id="org/a", done_bytes=GIB, total_bytes=2 * GIB, bytes_per_s=5 << 20)
    ready = WeightsNews(id="org/a", status="ready")
    stream = b"event: progress\ndata: %b\n\nevent: done\ndata: %b\n\n" % (
        encode_json(news),
        encode_json(ready),
    )
    url = serve(200, stream)

    done = cortex("weights", "pull", "org/a", "--node", "beast", "--endpoint", url)

    assert (done.returncode, done.stdout) == (0, "org/a on beast: ready\n")
    assert "1.0 of 2.0 GiB, 5.0 MiB/s" in done.stderr


def test_refusals_are_told_with_status_1(cortex: Run, serve: Serve) -> None:
    """Ours: in the neuron's words, and 2 without a node."""
    error = {"error": {"message": "'org/a' is loaded; unload it first", "type": "x"}}
    events = b"event: error\ndata: %b\n\n" % encode_json(error)

    refused = cortex(
        "weights", "rm", "org/a", "--node", "n", "--endpoint", serve(409, encode_json(error))
    )
    failed = cortex("weights", "pull", "org/a", "--node", "n", "--endpoint", serve(200, events))
    unclear = cortex("weights", "rm", "org/a")

    assert refused.returncode == 1
    assert refused.stderr == "cortex: 'org/a' is loaded; unload it first\n"
    assert failed.returncode == 1
    assert "unload it first" in failed.stderr
    assert unclear.returncode == 2


def test_removal_is_told(cortex: Run, serve: Serve) -> None:
    """Ours: one line, or JSON."""
    body = encode_json(WeightsNews(id="org/a", status="removed"))
    line = cortex("weights", "rm", "org/a", "--node", "n", "--endpoint", serve(200, body))
    raw = cortex("weights", "rm", "org/a", "--node", "n", "--json", "--endpoint", serve(200, body))

    assert line.stdout == "org/a on n: removed\n"
    assert json.loads(raw.stdout)["status"] == "removed"
