"""Where the agents are that the test session installed; without them their tests are skipped."""

import os
import platform
import sys
from pathlib import Path

import pytest

FOLDER = os.environ.get("AGENTS_FOLDER")
"""The folder that the session `tests` of the noxfile filled."""

PATHS = {
    "claude": "node_modules/@anthropic-ai/claude-code-linux-x64/claude",
    "codex": "node_modules/@openai/codex-linux-x64/vendor/x86_64-unknown-linux-musl/bin/codex",
    "opencode": "node_modules/opencode-linux-x64-baseline/bin/opencode",
    "aider": "aider/bin/aider",
    "javascript": "node_modules",
}
"""Where each is in the folder; the others are in the environment that the tests run in."""


def need(agent: str) -> None:
    """Skip the test where an agent cannot be; fail where it should be and is not."""
    if FOLDER is None:
        pytest.skip("AGENTS_FOLDER names no folder with agents: `nox -s tests-3.11` makes one")
    path = program(agent)
    if not path.exists() and (sys.platform, platform.machine()) != ("linux", "x86_64"):
        pytest.skip("the agents are pinned for Linux on x86-64")
    assert path.exists(), f"{path} was not installed"


def program(agent: str) -> Path:
    """Return where an agent's command is, or the folder of the JavaScript packages."""
    return Path(FOLDER or "", PATHS.get(agent, ""))


def clean_environment(home: Path, **more: str) -> dict[str, str]:
    """Return the environment of a new user: no settings, no keys, no way out of this machine."""
    nowhere = "http://127.0.0.1:9"
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "TERM": "dumb",
        "HTTP_PROXY": nowhere,
        "HTTPS_PROXY": nowhere,
        "NO_PROXY": "127.0.0.1",
        **more,
    }
