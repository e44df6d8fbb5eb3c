"""The known answer after a wake, with the real engine.

On the CPU vLLM's sleep keeps the weights where they are, but from level 2 it reads them again as
it would on a GPU; that is enough to see that weights which changed meanwhile are caught.
"""

import array
import json
import pathlib
import shutil
import subprocess
import sys

import pytest

from cortex_core.ids import ModelId
from neuron.models import BUILTIN

pytestmark = pytest.mark.timeout(300)

CYCLE = """
import asyncio, json, pathlib, shutil, sys

from cortex_core.errors import RequestError
from cortex_core.harness import ModelSpec
from cortex_core.server.clock import SystemClock
from neuron.engines.vllm import VllmHarness
from neuron.settings import MediaSettings, VllmSettings
from neuron.weights.downloads import Downloads

folder, broken = sys.argv[1:3]
OPTIONS = json.loads(sys.argv[3])


async def main() -> None:
    async with asyncio.TaskGroup() as tasks:
        downloads = Downloads.from_settings(VllmSettings(), {}, SystemClock(), tasks)
        await cycle(VllmHarness(VllmSettings(), downloads, MediaSettings()))


async def cycle(harness: VllmHarness) -> None:
    said = {}
    try:
        await harness.prepare(asyncio.Event())
        spec = ModelSpec(model=folder, harness="vllm", engine=OPTIONS)
        engine = await harness.load(await harness.check(spec), lambda *news: None)
        try:
            await engine.check_answer()
            for level in (1, 2):
                await engine.sleep(level)
                await engine.wake()
                await engine.check_answer()
            await engine.sleep(2)
            shutil.copy(broken, pathlib.Path(folder, "model.safetensors"))
            await engine.wake()
            await engine.check_answer()
        except RequestError as error:
            said["error"] = error.message
        finally:
            await engine.close(0)
    finally:
        await harness.close()
    print(json.dumps(said))


if __name__ == "__main__":
    asyncio.run(main())
"""


def spoilt(weights: pathlib.Path) -> bytes:
    """Return a safetensors file with the same numbers in another order."""
    raw = weights.read_bytes()
    begin = 8 + int.from_bytes(raw[:8], "little")
    numbers = array.array("I", raw[begin:])
    numbers.reverse()
    return raw[:begin] + numbers.tobytes()


@pytest.mark.parametrize("model", ["cortex/tiny", "cortex/tiny-embed"])
def test_weights_that_changed_in_the_sleep_are_caught(tmp_path: pathlib.Path, model: str) -> None:
    """Ours: the same weights pass at both levels, others do not."""
    builtin = BUILTIN[ModelId(model)]
    folder = tmp_path / "model"
    shutil.copytree(builtin.path, folder)
    (tmp_path / "broken.safetensors").write_bytes(spoilt(folder / "model.safetensors"))
    script = tmp_path / "cycle.py"
    script.write_text(CYCLE)
    options = {**builtin.engine, "max_model_len": 512}

    ended = subprocess.run(
        [
            sys.executable,
            str(script),
            str(folder),
            str(tmp_path / "broken.safetensors"),
            json.dumps(options),
        ],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )

    assert ended.returncode == 0, ended.stderr[-2000:]
    said = json.loads(ended.stdout.splitlines()[-1])
    assert "is broken" in said.get("error", "nothing was wrong")
