"""Assert that one distribution is ours, is whole, and came without its siblings.

Usage: check_alone.py DISTRIBUTION VERSION, in an environment that holds that wheel, cortex-core's
and what the two require.
"""

import importlib
import importlib.metadata
import importlib.util
import sys

OURS = {
    "cortex-core": "cortex_core",
    "cortex-gateway": "cortex_gateway",
    "neuron": "neuron",
    "cortex-cli": "cortex_cli",
}
GROUPS = {"console_scripts", "cortex.commands", "cortex.settings", "vllm.general_plugins"}


def main(dist: str, version: str) -> None:
    """Check `dist`; an AssertionError says what is wrong."""
    for name, module in OURS.items():
        if name in {dist, "cortex-core"}:
            # Strangers own three of these names: only the version tells their package from ours.
            found = importlib.metadata.version(name)
            assert found == version, f"{name} {found} is not the wheel built from this tree"
        else:
            assert importlib.util.find_spec(module) is None, f"{dist} pulled in {name}"

    package = OURS[dist]
    importlib.import_module(package)
    files = {str(path) for path in importlib.metadata.files(dist) or ()}
    assert f"{package}/py.typed" in files, "the wheel has no py.typed"
    assert any(path.endswith("licenses/LICENSE") for path in files), "the wheel has no licence"
    if dist == "neuron":
        assert any(path.endswith(".safetensors") for path in files), "the wheel has no model"
    entries = [e for e in importlib.metadata.distribution(dist).entry_points if e.group in GROUPS]
    for entry in entries:
        assert callable(entry.load()), f"{entry.value} is not callable"
    print(f"{dist} {version} stands alone; {len(entries)} entry points load")


if __name__ == "__main__":
    main(*sys.argv[1:])
