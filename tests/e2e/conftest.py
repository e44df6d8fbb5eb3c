"""One neuron with both built-in models for every module that does not break it."""

from collections.abc import Iterator

import pytest

from tests.e2e.neuron_process import NeuronProcess, running

CHAT = "cortex/tiny"
EMBED = "cortex/tiny-embed"


@pytest.fixture(scope="session")
def neuron(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NeuronProcess]:
    """A neuron that has `cortex/tiny` and `cortex/tiny-embed` loaded."""
    with running(tmp_path_factory.mktemp("n")) as daemon:
        for model in (CHAT, EMBED):
            answer = daemon.load(model)
            assert answer.status_code == 200, answer.text
        yield daemon


@pytest.fixture(scope="module")
def own_neuron(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NeuronProcess]:
    """A neuron of the module's own, with nothing loaded."""
    with running(tmp_path_factory.mktemp("o")) as daemon:
        yield daemon
