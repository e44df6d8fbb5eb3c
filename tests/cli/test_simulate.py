"""`cortex simulate` as a process."""

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Run

FLEET = """
wait_bound_s = 10
[[nodes]]
name = "n"
devices = [{ vram_total_mb = 24000 }]
load_s = 2
"""
MODELS = "".join(
    f'[[models]]\nid = "org/{name}"\nharness = "vllm"\nvram_mb = 16000\n' for name in "ab"
)
TRACE = "".join(
    json.dumps(
        {
            "at": at,
            "model": f"org/{model}",
            "caller": "ann\u001b[2J",
            "prompt_tokens": 10,
            "completion_tokens": 10,
        }
    )
    + "\n"
    for at, model in ((0, "a"), (30, "a"), (90, "b"))
)


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Writes fleet and catalogue, and gives the options that name them."""
    (tmp_path / "fleet.toml").write_text(FLEET)
    (tmp_path / "models.toml").write_text(MODELS)
    (tmp_path / "trace.jsonl").write_text(TRACE)
    return ["--fleet", str(tmp_path / "fleet.toml"), "--models", str(tmp_path / "models.toml")]


def test_a_line_for_each_strategy_and_for_the_best(
    cortex: Run, files: list[str], tmp_path: Path
) -> None:
    """Issue: the table; the terminal obeys nothing that comes from a file."""
    trace = ["--trace", str(tmp_path / "trace.jsonl")]
    done = cortex("simulate", *files, *trace, "--strategy", "lru", "--strategy", "cost")

    assert (done.returncode, done.stderr) == (0, "")
    lines = [line.split() for line in done.stdout.splitlines()]
    assert lines[0][:5] == ["STRATEGY", "SERVED", "REFUSED", "HITS", "GAP"]
    assert lines[1][:5] == ["lru", "3", "0", "33.3%", "0.0%"]
    assert [line[0] for line in lines[1:5]] == ["lru", "cost", "optimum", "bound"]
    assert lines[6] == ["WORST", "WAIT", "OF", "LRU", "COST"]
    assert lines[7][1:] == ["19", "s", "19", "s"]
    assert "lru let 1 caller(s) wait beyond the bound" in done.stdout
    assert "\x1b" not in done.stdout


def test_the_same_seed_gives_the_same_bytes(cortex: Run, files: list[str], tmp_path: Path) -> None:
    """Issue: deterministic by seed, whatever the hashes of names; and --json is the same as data."""
    page, trace = tmp_path / "page.html", tmp_path / "saved.jsonl"
    options = [*files, "--generate", "bursts", "--seed", "7", "--json", "--plot", str(page)]
    seen = []
    for salt in ("1", "2"):
        done = cortex(
            "simulate", *options, "--save-trace", str(trace), environ={"PYTHONHASHSEED": salt}
        )
        assert (done.returncode, done.stderr) == (0, "")
        seen.append((done.stdout, page.read_bytes(), trace.read_bytes()))
    replayed = cortex("simulate", *files, "--trace", str(trace), "--seed", "7", "--json")

    assert seen[0] == seen[1]
    report = json.loads(seen[0][0])
    assert report["seed"] == 7
    assert report["results"][0]["strategy"] == "lru"
    assert report["results"][0]["requests"] == seen[0][2].count(b"\n") > 1000
    assert json.loads(replayed.stdout)["results"][0]["served"] == report["results"][0]["served"]
    other = cortex("simulate", *files, "--generate", "bursts", "--seed", "8", "--json")
    assert json.loads(other.stdout) != report


@pytest.mark.parametrize(
    ("extra", "why"),
    [
        ([], "say who asks"),
        (["--generate", "steady", "--trace", "x.jsonl"], "say who asks"),
        (["--trace", "missing.jsonl"], "missing.jsonl: cannot be read"),
        (["--trace", "missing.toml"], "missing.toml: cannot be read"),
        (["--generate", "steady", "--per-second", "0"], "sources[0].per_second"),
        (["--generate", "steady", "--plot", "/nowhere/x"], "/nowhere/x: cannot be written"),
    ],
)
def test_what_cannot_work_is_said_in_a_line(
    cortex: Run, files: list[str], extra: list[str], why: str
) -> None:
    """Contract: status 2 for usage and configuration."""
    done = cortex("simulate", *files, *extra)

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("cortex: ")
    assert done.stderr.count("\n") == 1
    assert why in done.stderr
