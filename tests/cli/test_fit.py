"""`cortex fit` against one gateway's answer."""

import json

from cortex_core.codec import encode_json
from cortex_core.ids import ModelId, NodeName
from cortex_core.wire.fit import (
    FitCheck,
    FitNeed,
    FitReport,
    FitSuggestion,
    FleetFit,
    NodeFit,
)
from tests.cli.conftest import Run, Serve

SMALL = NodeFit(
    node=NodeName("small"),
    report=FitReport(
        model="org/model",
        ok=False,
        needed=FitNeed(total_bytes=18 << 30, source="given"),
        checks=(
            FitCheck(name="format", verdict="ok", message="safetensors"),
            FitCheck(name="memory", verdict="failed", message="it needs 18,432 MiB"),
        ),
        suggestion=FitSuggestion(max_model_len=16384, message="max_model_len 16384 would fit"),
    ),
)
BIG = NodeFit(
    node=NodeName("big"),
    report=FitReport(
        model="org/model",
        ok=True,
        needed=FitNeed(total_bytes=18 << 30, source="given"),
        checks=(FitCheck(name="format", verdict="ok", message="safetensors"),),
    ),
)
OFF = NodeFit(node=NodeName("off"), error="off is down:\x1b[2J gone")


def answer(*nodes: NodeFit) -> bytes:
    ok = any(one.report is not None and one.report.ok for one in nodes)
    return encode_json(FleetFit(model=ModelId("org/model"), ok=ok, nodes=nodes))


def test_it_is_told_node_by_node_with_what_would_fit(cortex: Run, serve: Serve) -> None:
    """Issue 5: as a table, and status 0 where it fits somewhere."""
    done = cortex("fit", "org/model", "--endpoint", serve(200, answer(BIG, OFF, SMALL)))

    lines = done.stdout.splitlines()
    assert (done.returncode, done.stderr) == (0, "")
    assert lines[0].split() == ["NODE", "FITS", "NEEDS", "WHY"]
    assert lines[1].split() == ["big", "ok", "18.0", "GiB"]
    assert lines[2].split()[:3] == ["off", "no", "-"]
    assert "it needs 18,432 MiB; max_model_len 16384 would fit" in lines[3]
    assert "safetensors" not in done.stdout
    assert "\x1b" not in done.stdout


def test_one_node_is_shown_with_all_its_checks(cortex: Run, serve: Serve) -> None:
    """Ours: and status 1 where it does not fit."""
    done = cortex("fit", "org/model", "--node", "small", "--endpoint", serve(200, answer(SMALL)))

    assert done.returncode == 1
    assert "format         ok" in done.stdout
    assert "memory         failed" in done.stdout


def test_json_is_what_the_gateway_said(cortex: Run, serve: Serve) -> None:
    """Ours: `--json`."""
    body = answer(BIG)
    done = cortex("fit", "org/model", "--json", "--endpoint", serve(200, body))

    assert json.loads(done.stdout) == json.loads(body)
