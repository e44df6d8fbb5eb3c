"""The benchmarks run; what they measure is nobody's business here."""

import asyncio
import json
import os
import sys
from pathlib import Path

import pytest

from tests.repository.checkout import PACKAGES, ROOT


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the benchmarks read /proc")
async def test_gateways_are_compared_in_the_smallest_size(tmp_path: Path) -> None:
    """Issue: any figure can be produced again with one command."""
    paths = [*(str(ROOT / "packages" / name / "src") for name in PACKAGES), str(ROOT)]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.peers", "cortex", "--quick", "--rounds", "1"),
        *("--folder", str(tmp_path), "--out", str(tmp_path / "found")),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(50):
        _, said = await process.communicate()

    assert process.returncode == 0, said.decode()
    rounds = {
        one["name"]: one for one in json.loads((tmp_path / "found.json").read_text())["rounds"]
    }
    assert not rounds["cortex"]["failed"]
    assert rounds["cortex"]["numbers"]["cpu_s_per_1000_chunks_messages"] > 0
    assert "| cortex over | direct |" in (tmp_path / "found.md").read_text()
    assert (tmp_path / "found.svg").read_text().endswith("</svg>\n")
