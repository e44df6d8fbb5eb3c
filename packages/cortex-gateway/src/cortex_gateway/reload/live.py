"""Settings that others hold a reference to, and that change below them."""

from cortex_gateway.clients.node import NodePatience
from cortex_gateway.settings import GatewaySettings


class LiveSettings:
    """What clients and the data path read, as it is in force at the moment of the question.

    `ProxySettings`, and the patience of clients.
    """

    def __init__(self, settings: GatewaySettings) -> None:
        self.current = settings
        """Replaced by a reload."""

    @property
    def first_byte_s(self) -> float:
        """For the head of a node's answer."""
        return self.current.gateway.timeouts.first_byte_s

    @property
    def idle_s(self) -> float:
        """Between two chunks of a node's answer."""
        return self.current.gateway.timeouts.idle_s

    @property
    def load_s(self) -> float:
        """For a load."""
        return self.current.gateway.timeouts.load_s

    def node_patience(self) -> NodePatience:
        """For the control API of a neuron."""
        return NodePatience(load_s=self.load_s)

    @property
    def hold_s(self) -> float:
        """Longest wait for a turn with a model."""
        return self.current.gateway.timeouts.hold_s

    @property
    def heartbeat_s(self) -> float:
        """Between signs of life to a streaming caller."""
        return self.current.gateway.timeouts.heartbeat_s

    @property
    def max_in_flight(self) -> int:
        """Requests that a replica is given at once."""
        return self.current.gateway.queue.max_in_flight

    @property
    def max_waiting(self) -> int:
        """Requests that may wait for one model; for lines that begin from now on."""
        return self.current.gateway.queue.max_waiting

    @property
    def max_waiting_per_caller(self) -> int:
        """Those of one caller; likewise."""
        return self.current.gateway.queue.max_waiting_per_caller
