"""What every test gets: hypothesis profiles, and a guard against a blocked event loop."""

import inspect
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from blockbuster import blockbuster_ctx
from hypothesis import settings

settings.register_profile("dev", max_examples=50, deadline=None)
settings.register_profile("ci", max_examples=200, deadline=None, derandomize=True)
settings.register_profile("deep", max_examples=20_000, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))


END_TO_END = Path(__file__).parent / "e2e"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Count whatever is end to end as a test of the engine, so that both are chosen together."""
    for item in items:
        if END_TO_END in item.path.parents:
            item.add_marker(pytest.mark.engine)


@pytest.fixture(autouse=True)
def no_blocking_calls(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test in which our code blocks the event loop.

    Not where the real engine runs in the test's own process: the engine is not ours to mend.
    """
    is_async = inspect.iscoroutinefunction(getattr(request, "function", None))
    if not is_async or request.node.get_closest_marker("engine"):
        yield
        return
    with blockbuster_ctx(["cortex_core", "cortex_gateway", "neuron", "cortex_cli"]):
        yield
