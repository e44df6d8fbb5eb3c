"""The fleet as text."""

import msgspec
import pytest
from hypothesis import given, strategies as st

from cortex_cli.context import Style
from cortex_cli.render.fleet import render_fleet
from cortex_cli.render.text import BAR_CELLS, bar, table
from cortex_core.fleet.overview import (
    DeviceView,
    FleetOverview,
    NodeView,
    ReplicaView,
    UnloadedView,
)
from cortex_core.ids import DeviceIndex, ModelId, NodeName
from cortex_core.replica import LoadProgress
from cortex_core.wire.neuron import Activation, ActivationFailure

GIB = 1 << 30
PLAIN = Style()
ASCII = Style(is_unicode=False)
COLOURED = Style(is_coloured=True)

FLEET = FleetOverview(
    status="degraded",
    nodes=(
        NodeView(
            name=NodeName("beast"),
            endpoint="http://beast.internal:13131",
            health="up",
            version="0.1.0",
            devices=(
                DeviceView(
                    index=DeviceIndex(0),
                    name="SIM-24",
                    vram_total_bytes=24 * GIB,
                    vram_used_bytes=6 * GIB,
                    utilization_ratio=0.125,
                    temp_c=41.0,
                    power_w=71.6,
                    power_limit_w=72.0,
                    other_used_bytes=2 * GIB,
                    condition="degraded",
                    condition_reason="it is slowed down: software_thermal",
                ),
                DeviceView(index=DeviceIndex(1)),
            ),
            models=(
                ReplicaView(
                    id=ModelId("org/chat"),
                    status="loaded",
                    devices=(DeviceIndex(0),),
                    vram_used_bytes=6 * GIB,
                    in_flight=3,
                    queued=1,
                ),
                ReplicaView(
                    id=ModelId("org/big"),
                    status="loading",
                    devices=(DeviceIndex(0), DeviceIndex(1)),
                    progress=LoadProgress(
                        stage="weights", done_bytes=GIB, total_bytes=4 * GIB, eta_s=12.4
                    ),
                ),
            ),
            activation=Activation(
                state="pre_warming",
                pending=("a",),
                failed=(ActivationFailure(model_id="b", error="no weights"),),
            ),
        ),
        NodeView(
            name=NodeName("cpu"),
            endpoint="http://cpu.internal:13131",
            health="down",
            last_error="connection refused",
            cuda_unavailable_reason="no driver",
        ),
    ),
    unloaded=(
        UnloadedView(id=ModelId("org/cold"), harness="vllm", feasible_on=(NodeName("beast"),)),
        UnloadedView(id=ModelId("org/huge"), harness="vllm", reason="beast: too small"),
    ),
)

GOLDEN = """\
fleet degraded: 1 of 2 nodes up

NODE   HEALTH  VERSION  ENDPOINT                     NOTE
beast  up      0.1.0    http://beast.internal:13131  1 default model(s) to load; b: no weights
cpu    down    -        http://cpu.internal:13131    connection refused; no CUDA: no driver

DEVICE   NAME    MEMORY                                 BUSY  TEMP   POWER       NOTE
beast/0  SIM-24  █████░░░░░░░░░░░░░░░  6.0 of 24.0 GiB  12%   41 °C  72 of 72 W  degraded: it is slowed down: software_thermal; 2.0 GiB used by others
beast/1  -       -                     -                -     -      -

MODEL     NODE   STATUS    DEVICES  MEMORY   IN FLIGHT  QUEUED  NOTE
org/big   beast  loading   0,1      -        0          0       weights 1.0 of 4.0 GiB, 12 s left
org/chat  beast  loaded    0        6.0 GiB  3          1
org/cold  -      unloaded  -        -        -          -       loads on demand on beast
org/huge  -      unloaded  -        -        -          -       fits on no node; beast: too small
"""


def test_fleet_is_shown_as_aligned_tables() -> None:
    """Ours: golden text; what is not known is a dash, never a zero."""
    assert render_fleet(FLEET, PLAIN) == GOLDEN


def test_terminal_without_unicode_gets_ascii_alone() -> None:
    """Ours: bars fall back to # and dots, and nothing else needs more than ASCII."""
    text = render_fleet(FLEET, ASCII)

    assert text.isascii()
    assert "#####...............  6.0 of 24.0 GiB" in text


def test_colours_change_nothing_but_colour() -> None:
    """Ours: columns are as wide as without, and the states are painted by what they mean."""
    text = render_fleet(FLEET, COLOURED)

    assert "\x1b[32mup\x1b[0m" in text
    assert "\x1b[31mdown\x1b[0m" in text
    assert "\x1b[33mloading\x1b[0m" in text
    assert _unpainted(text) == GOLDEN


def test_empty_fleet_is_one_line() -> None:
    """Ours: no empty tables."""
    assert render_fleet(FleetOverview(status="degraded"), PLAIN) == (
        "fleet degraded: 0 of 0 nodes up\n"
    )


def test_strings_from_other_machines_cannot_steer_the_terminal() -> None:
    """Ours: names and errors come over the network."""
    node = NodeView(
        name=NodeName("a\x1b[2J"), endpoint="e", health="up", last_error="two\nlines\x07"
    )
    text = render_fleet(FleetOverview(status="ok", nodes=(node,)), PLAIN)

    assert not [c for c in text if not c.isprintable() and c != "\n"]
    assert "two lines" in text


@pytest.mark.parametrize(
    ("used", "total", "text"),
    [
        (0, 100, "░" * 20),
        (1, 1000, "▏" + "░" * 19),
        (25, 100, "█" * 5 + "░" * 15),
        (99, 100, "█" * 19 + "▊"),
        (100, 100, "█" * 20),
        (200, 100, "█" * 20),
        (5, 0, "░" * 20),
    ],
)
def test_bar_is_filled_as_used_is_of_total(used: int, total: int, text: str) -> None:
    """Ours: in eighths of a cell."""
    assert bar(used, total, is_unicode=True) == text


@given(st.integers(-10, 200), st.integers(0, 100), st.booleans())
def test_bar_is_always_as_wide_as_asked(used: int, total: int, is_unicode: bool) -> None:
    """Ours: whatever the numbers."""
    assert len(bar(used, total, is_unicode=is_unicode)) == BAR_CELLS


def test_wide_characters_keep_columns_aligned() -> None:
    """Unicode UAX 11: East Asian wide characters take two columns."""
    lines = table(("A", "B"), [("模型", "x"), ("abcd", "y")], PLAIN)

    assert lines == ["A     B", "模型  x", "abcd  y"]


def test_memory_in_use_follows_from_what_is_free() -> None:
    """Ours: a driver may give one and not the other."""
    device = DeviceView(index=DeviceIndex(0), vram_total_bytes=4 * GIB, vram_free_bytes=3 * GIB)
    node = msgspec.structs.replace(FLEET.nodes[0], devices=(device,))

    assert "1.0 of 4.0 GiB" in render_fleet(FleetOverview(status="ok", nodes=(node,)), PLAIN)


def _unpainted(text: str) -> str:
    for code in ("0", "1", "31", "32", "33"):
        text = text.replace(f"\x1b[{code}m", "")
    return text
