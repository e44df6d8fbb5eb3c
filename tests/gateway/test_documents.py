"""PDFs are read in processes that are bounded, and gone afterwards."""

import asyncio
import base64
import os
import pathlib
import signal
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest

from cortex_core.errors import OverloadedError
from cortex_gateway.api.documents import RememberedPdfs, read_pdf
from cortex_gateway.proxy.aside import Threads
from tests.cli.processes import children_of
from tests.gateway.proxy.test_messages import pdf
from tests.server.harness import eventually

PDF = base64.b64decode(pdf("Grey geese."))


def test_the_text_is_what_the_pages_say() -> None:
    """Issue: PDF to text."""
    assert read_pdf(PDF) == "Grey geese."
    assert read_pdf(base64.b64decode(pdf(""))) == ""


def test_what_takes_too_long_is_ended() -> None:
    """Issue: every wait has a bound; a process takes longer than this to begin."""
    before = children_of(os.getpid())
    with pytest.raises(ValueError, match=r"it takes over 0\.001 s"):
        read_pdf(PDF, reading_s=0.001)

    assert children_of(os.getpid()) == before


def test_a_process_that_nobody_ends_is_ended_by_its_cpu_time() -> None:
    """Ours: its gateway may have been killed; a second is not enough for this page."""
    long = base64.b64decode(pdf("x) Tj ET BT (y" * 500_000))
    command = (sys.executable, "-m", "cortex_gateway.api.pdf_text", str(2 << 30), "1")
    ended = subprocess.run(command, input=long, capture_output=True, check=False)

    assert ended.returncode in {-signal.SIGXCPU, -signal.SIGKILL}
    assert not ended.stdout


def test_what_takes_too_much_memory_is_refused() -> None:
    """Issue: nothing grows without bound; the file alone has half of what there is."""
    large = base64.b64decode(pdf("x" * (64 << 20)))
    with pytest.raises(ValueError, match="memory"):
        read_pdf(large, memory_bytes=128 << 20)


def test_what_is_no_pdf_is_refused_with_the_reason() -> None:
    """Issue: a clear error."""
    with pytest.raises(ValueError, match=r"EOF|[Ss]tream|header"):
        read_pdf(b"no pdf")


def test_nothing_of_the_working_folder_is_imported(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ours: a daemon may be started anywhere."""
    (tmp_path / "pypdf.py").write_text("raise SystemExit(7)\n")
    monkeypatch.chdir(tmp_path)

    assert read_pdf(PDF) == "Grey geese."


def test_keys_stay_here(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours: any variable may have an upstream's key, and a stranger wrote what is read."""
    reader = "import os\nraise ValueError(os.environ.get('UPSTREAM_KEY', 'no key'))\n"
    (tmp_path / "pypdf.py").write_text(reader)
    folders = (str(tmp_path), os.environ.get("PYTHONPATH", ""))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, folders)))
    monkeypatch.setenv("UPSTREAM_KEY", "a secret")

    with pytest.raises(ValueError, match="no key"):
        read_pdf(PDF)


def test_no_room_for_a_process_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours: the caller may come again; nothing is wrong with its PDF."""
    monkeypatch.setattr(sys, "executable", "/nowhere/python")

    with pytest.raises(OverloadedError, match="no process to read a PDF") as refused:
        read_pdf(PDF)

    assert "/nowhere" not in str(refused.value)


async def test_nothing_more_is_read_for_who_has_left() -> None:
    """Issue: cancellation; a request may have a hundred PDFs that take their time."""
    begun: list[bytes] = []
    gate = threading.Event()
    threads = Threads("documents", threads=1, most=10)

    def slow(data: bytes) -> str:
        begun.append(data)
        gate.wait()
        return "text"

    def translate(*, read_pdf: Callable[[bytes], str]) -> list[str]:
        return [read_pdf(data) for data in (b"one", b"two")]

    async with asyncio.TaskGroup() as tasks:
        asking = tasks.create_task(RememberedPdfs(slow).foresee(threads, translate))
        await eventually(lambda: begun == [b"one"])
        asking.cancel()
    gate.set()
    await eventually(lambda: threads.pending == 0)

    assert begun == [b"one"]
