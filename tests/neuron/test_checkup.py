"""`neuron check`: what is wrong with a machine, and how to mend it."""

import os
import pathlib
import resource
from collections.abc import Callable, Iterator

import msgspec
import pytest

from cortex_core.device import DeviceReading
from cortex_core.ids import DeviceIndex
from neuron import __main__ as daemon
from neuron.devices.checkup import look_at_host
from neuron.lifecycle.checkup import HostFacts, find_problems
from neuron.ports import DeviceFacts

FINE = HostFacts(
    user="neuron",
    has_vllm=True,
    devices_reason=None,
    closed_device_files=(),
    cache="/cache",
    is_cache_writable=True,
    cache_free_mib=500_000,
    open_files=65536,
    shared_mib=8192,
)

WRONG = {
    "devices_reason": ("no driver", "devices cannot be used: no driver", "nvidia-smi"),
    "closed_device_files": (("/dev/nvidia0",), "neuron may not use /dev/nvidia0", "group"),
    "is_cache_writable": (False, "neuron may not write to the hub cache /cache", "hf_cache"),
    "cache_free_mib": (10_239, "the disk of the hub cache /cache has 10239 MiB left", "10240 MiB"),
    "open_files": (1024, "only 1024 files may be open at once", "LimitNOFILE=65536"),
    "shared_mib": (64, "the shared memory /dev/shm has 64 MiB", "--shm-size"),
}

SETTINGS = """
[[harnesses]]
name = "simulated"
[[devices]]
index = 0
name = "SIM"
vram_total_mb = 24576
"""


class Source:
    """Devices of which some cannot be used."""

    def __init__(self) -> None:
        self.is_closed = False

    def discover(self) -> DeviceFacts:
        return DeviceFacts(unavailable_reason="one fell off the bus")

    def read(self) -> tuple[DeviceReading, ...]:
        return ()

    def listen(self, on_xid: Callable[[DeviceIndex, int], None]) -> None:
        pass

    def close(self) -> None:
        self.is_closed = True


@pytest.fixture
def open_files() -> Iterator[int]:
    """The limit of open files, lowered for the test and given back after it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
    yield 512
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_nothing_is_wrong_with_a_fine_machine() -> None:
    """Ours."""
    assert find_problems(FINE) == ()


@pytest.mark.parametrize("fact", WRONG)
def test_each_wrong_fact_is_a_problem_with_its_fix(fact: str) -> None:
    """Ours: that one alone, in words, with what to do."""
    value, problem, fix = WRONG[fact]

    (found,) = find_problems(msgspec.structs.replace(FINE, **{fact: value}))

    assert found.problem == problem
    assert fix in found.fix


def test_unknown_space_is_no_problem_and_missing_shared_memory_is() -> None:
    """Ours: a file system that does not tell is not full."""
    facts = msgspec.structs.replace(FINE, cache_free_mib=None, shared_mib=None)

    assert [one.problem for one in find_problems(facts)] == [
        "the shared memory /dev/shm is not there"
    ]


def test_what_only_vllm_needs_is_asked_for_vllm() -> None:
    """Ours: a simulated engine has neither weights nor processes."""
    facts = msgspec.structs.replace(FINE, has_vllm=False, is_cache_writable=False, shared_mib=64)

    assert find_problems(facts) == ()


def test_machine_is_looked_at(tmp_path: pathlib.Path, open_files: int) -> None:
    """Ours: facts as they are, for a cache that is not there yet, and nothing is created."""
    (tmp_path / "nvidia-caps").mkdir()
    (tmp_path / "nvidia0").touch()
    # Nobody may use it, the administrator included.
    (tmp_path / "nvidia1").symlink_to(tmp_path / "gone")
    source = Source()

    facts = look_at_host(
        source,
        tmp_path / "cache" / "hub",
        has_vllm=True,
        devices=tmp_path,
        shared=tmp_path / "no-shm",
    )

    assert source.is_closed
    assert facts.devices_reason == "one fell off the bus"
    assert facts.closed_device_files == (str(tmp_path / "nvidia1"),)
    assert (facts.cache, facts.is_cache_writable) == (str(tmp_path / "cache" / "hub"), True)
    usage = os.statvfs(tmp_path)
    assert facts.cache_free_mib is not None
    assert 0 <= facts.cache_free_mib <= usage.f_blocks * usage.f_frsize >> 20
    assert facts.open_files == open_files
    assert facts.shared_mib is None
    assert not (tmp_path / "cache").exists()


def test_file_in_the_way_of_the_cache_is_no_place_for_it(tmp_path: pathlib.Path) -> None:
    """Ours."""
    (tmp_path / "cache").touch()

    facts = look_at_host(Source(), tmp_path / "cache", has_vllm=True, devices=tmp_path)

    assert not facts.is_cache_writable


def test_command_prints_problems_and_fixes(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], open_files: int
) -> None:
    """Ours: status 1, a line for each problem and one for its fix."""
    (tmp_path / "neuron.toml").write_text(SETTINGS)

    assert daemon.main(["check", "--config", str(tmp_path / "neuron.toml")]) == 1

    printed = capsys.readouterr().out
    assert f"only {open_files} files may be open at once\n  to mend it: `ulimit -n" in printed


def test_wrong_settings_come_first(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ours: status 2, as at a start."""
    (tmp_path / "neuron.toml").write_text("nonsense = 1")

    assert daemon.main(["check", "--config", str(tmp_path / "neuron.toml")]) == 2
    assert "nonsense" in capsys.readouterr().err


def test_command_says_that_nothing_is_wrong(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ours: status 0, and not silence."""
    (tmp_path / "neuron.toml").write_text(SETTINGS)
    monkeypatch.setattr(daemon, "look_at_host", lambda *_, **__: FINE)

    assert daemon.main(["check", "--config", str(tmp_path / "neuron.toml")]) == 0
    assert capsys.readouterr().out == "nothing is wrong with this machine\n"
