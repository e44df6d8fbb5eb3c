"""How each agent is started without a person: its command, its settings, its environment."""

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from tests.agents import installed

HERE = Path(__file__).parent

MODEL = "org/model"


class Session(msgspec.Struct, frozen=True, kw_only=True):
    """A command that is ready to be run in a folder."""

    command: tuple[str, ...]
    environ: Mapping[str, str] = {}


Prepare = Callable[[str, Path, str], Session]
"""From the gateway's URL, the folder and the prompt; writes what settings the agent needs."""


def _command(agent: str) -> str:
    return str(installed.program(agent))


def claude(url: str, folder: Path, prompt: str) -> Session:
    command = (_command("claude"), "--model", MODEL, "-p", prompt)
    options = ("--allowedTools", "Write,Bash,Read", "--output-format", "stream-json", "--verbose")
    environ = {"ANTHROPIC_BASE_URL": url, "ANTHROPIC_API_KEY": "k"}
    return Session(command=command + options, environ=environ)


def codex(url: str, folder: Path, prompt: str) -> Session:
    provider = f'{{name="cortex",base_url="{url}/v1",env_key="CORTEX_KEY",wire_api="responses"}}'
    settings = ("-c", "model_provider=cortex", "-c", f"model_providers.cortex={provider}")
    # Its own sandbox needs rights that a container may not have.
    options = ("--skip-git-repo-check", "--json", "--sandbox", "danger-full-access", *settings)
    command = (_command("codex"), "exec", *options, "-m", MODEL, prompt)
    return Session(command=command, environ={"CORTEX_KEY": "k"})


def opencode(package: str) -> Prepare:
    def prepare(url: str, folder: Path, prompt: str) -> Session:
        options = {"baseURL": f"{url}/v1", "apiKey": "k"}
        provider = {"npm": package, "options": options, "models": {MODEL: {}}}
        name = f"cortex/{MODEL}"
        settings = {"provider": {"cortex": provider}, "model": name, "small_model": name}
        (folder / "opencode.json").write_text(json.dumps(settings))
        command = (_command("opencode"), "run", "--format", "json", prompt)
        return Session(command=command)

    return prepare


def aider(dialect: str) -> Prepare:
    def prepare(url: str, folder: Path, prompt: str) -> Session:
        quiet = ("--no-git", "--yes-always", "--no-show-model-warnings", "--no-check-update")
        plain = ("--analytics-disable", "--no-pretty", "--map-tokens", "0")
        options = (*quiet, *plain, "--edit-format", "whole", "--message", prompt, "hello.txt")
        command = (_command("aider"), "--model", f"{dialect}/{MODEL}", *options)
        base = url if dialect == "anthropic" else f"{url}/v1"
        name = dialect.upper()
        return Session(command=command, environ={f"{name}_API_BASE": base, f"{name}_API_KEY": "k"})

    return prepare


def llm(url: str, folder: Path, prompt: str) -> Session:
    settings = folder / "llm"
    settings.mkdir()
    model = {
        "model_id": "cortex",
        "model_name": MODEL,
        "api_base": f"{url}/v1",
        "api_key_name": "cortex",
        "supports_tools": True,
    }
    # YAML reads JSON.
    (settings / "extra-openai-models.yaml").write_text(json.dumps([model]))
    (settings / "keys.json").write_text(json.dumps({"cortex": "k"}))
    tools = str(HERE / "llm_tools.py")
    command = (sys.executable, "-m", "llm", "-m", "cortex", "--functions", tools, prompt)
    return Session(command=command, environ={"LLM_USER_PATH": str(settings)})


def langchain(dialect: str) -> Prepare:
    def prepare(url: str, folder: Path, prompt: str) -> Session:
        script = str(HERE / "langchain_session.py")
        return Session(command=(sys.executable, script, dialect, url, MODEL, prompt))

    return prepare


SESSIONS: Mapping[str, Prepare] = {
    "claude-code": claude,
    "codex": codex,
    "opencode-chat": opencode("@ai-sdk/openai-compatible"),
    "opencode-messages": opencode("@ai-sdk/anthropic"),
    "opencode-responses": opencode("@ai-sdk/openai"),
    "aider-chat": aider("openai"),
    "aider-messages": aider("anthropic"),
    "llm": llm,
    "langchain-chat": langchain("openai"),
    "langchain-messages": langchain("anthropic"),
    "langchain-responses": langchain("responses"),
}
