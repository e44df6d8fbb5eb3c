"""Assert that one distribution is ours, is whole, and came without its siblings.

Usage: check_alone.py DISTRIBUTION VERSION, in an environment that holds that wheel, cortex-core's
and what the two require.
"""

import importlib
import importlib.metadata
import importlib.util
import pkgutil
import sys

OURS = {
    "cortex-core": "cortex_core",
    "cortex-gateway": "cortex_gateway",
    "neuron": "neuron",
    "cortex-cli": "cortex_cli",
}
GROUPS = {"console_scripts", "cortex.commands", "cortex.settings", "vllm.general_plugins"}


def check_company(dist: str, version: str) -> None:
    """Assert that the environment holds what `dist` asks for and no sibling but core."""
    for name, module in OURS.items():
        if name in {dist, "cortex-core"}:
            # Strangers own three of these names: only the version tells their package from ours.
            found = importlib.metadata.version(name)
            assert found == version, f"{name} {found} is not the wheel built from this tree"
        else:
            assert importlib.util.find_spec(module) is None, f"{dist} pulled in {name}"
    if dist == "cortex-core":
        around = {found.name for found in importlib.metadata.distributions()} - {dist}
        assert around == {"msgspec"}, f"cortex-core pulled in {around}"


def check_files(dist: str) -> None:
    """Assert that the wheel has what is not code."""
    files = {str(path) for path in importlib.metadata.files(dist) or ()}
    assert f"{OURS[dist]}/py.typed" in files, "the wheel has no py.typed"
    assert any(path.endswith("licenses/LICENSE") for path in files), "the wheel has no licence"
    if dist == "neuron":
        assert any(path.endswith(".safetensors") for path in files), "the wheel has no model"


def check_imports(dist: str) -> int:
    """Import every module that `dist` can use as installed, and load its entry points."""
    package = importlib.import_module(OURS[dist])
    found = pkgutil.walk_packages(package.__path__, f"{OURS[dist]}.")
    # What is run, not imported, is covered by the entry points.
    names = [module.name for module in found if not module.name.endswith("__main__")]
    if dist == "cortex-core":
        # The extra `server` is not installed here.
        names = [name for name in names if not name.startswith("cortex_core.server")]
    for name in names:
        importlib.import_module(name)
    for entry in importlib.metadata.distribution(dist).entry_points:
        if entry.group in GROUPS:
            assert callable(entry.load()), f"{entry.value} is not callable"
    return len(names)


def main(dist: str, version: str) -> None:
    """Check `dist`; an AssertionError says what is wrong."""
    check_company(dist, version)
    check_files(dist)
    print(f"{dist} {version} stands alone: {check_imports(dist)} modules import")


if __name__ == "__main__":
    main(*sys.argv[1:])
