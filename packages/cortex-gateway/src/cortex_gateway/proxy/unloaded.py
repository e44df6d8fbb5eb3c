"""Questions about the tokens of a model that is not loaded: its files answer them, at some node."""

import contextlib
import logging
from base64 import b64encode

from cortex_core.catalogue import Profile
from cortex_core.codec import encode_json
from cortex_core.dialect import Dialect
from cortex_core.fleet.state import NodeState
from cortex_core.ids import ModelId, ReplicaId
from cortex_core.routing.files import nodes_with_files
from cortex_core.routing.route import RouteHints, Serve
from cortex_core.wire.neuron import SPEC_HEADER, LoadRequest
from cortex_gateway.ports import UpstreamFailure
from cortex_gateway.proxy.access import NEURON, headers_for
from cortex_gateway.proxy.account import Account
from cortex_gateway.proxy.asked import Asked, Outbound
from cortex_gateway.proxy.call import Call
from cortex_gateway.proxy.relay import Relay
from cortex_gateway.proxy.reply import Reply
from cortex_gateway.proxy.search import error_of
from cortex_gateway.proxy.walk import Doors, is_refusal

logger = logging.getLogger(__name__)

_MAX_SPEC_CHARS = 8 << 10
"""Longest header that servers take as a matter of course; a spec over it has a model loaded."""


class FilesWalk:
    """Takes a question about tokens (`FILES_ROUTES`) to the files of its model.

    Args:
        doors: the rooms around.
        call: the head of the request.
        asked: what it asks for.
        foreseen: what would be sent to a node.
        reply: the caller's side.
        account: its figures.
    """

    def __init__(
        self,
        doors: Doors,
        call: Call,
        asked: Asked,
        foreseen: Outbound,
        reply: Reply,
        account: Account,
    ) -> None:
        self._doors = doors
        self._call = call
        self._asked = asked
        self._foreseen = foreseen
        self._reply = reply
        self._account = account

    async def run(self, model: ModelId, hints: RouteHints) -> bool:
        """Answer the question without an engine.

        Returns:
            False when it needs an engine after all: a node has the model loaded, or none has its
            files.

        Raises:
            RequestError: what the caller is to be told instead.
        """
        doors = self._doors
        profile = doors.store.catalogue.profiles.get(model)
        if profile is None:
            return False
        if isinstance(doors.lines.decide(model, hints), Serve):
            return False
        # An adapter's tokens are its base's.
        host = doors.store.catalogue.host(profile)
        spec = _spec_header(profile, host)
        if len(spec[1]) > _MAX_SPEC_CHARS:
            return False
        strangers = {name for name, access in doors.accesses.items() if not access.is_neuron}
        for node in nodes_with_files(doors.store.state, host, strangers):
            if await self._ask(node, model, spec):
                return True
        return False

    async def _ask(self, node: NodeState, model: ModelId, spec: tuple[str, str]) -> bool:
        doors, sent = self._doors, self._foreseen
        self._account.dispatch(ReplicaId(node=node.name, model=model))
        self._account.ignored = sent.ignored
        access = doors.accesses.get(node.name, NEURON)
        headers = headers_for(access, self._call.onward, [*sent.headers, spec])
        relay = Relay(self._reply, self._account, None, self._asked, sent, Dialect.OPENAI)
        try:
            answer = await doors.upstream.post(node.endpoint + sent.path, headers, sent.body)
            with contextlib.closing(answer):
                if is_refusal(answer):
                    return False
                await relay.run(answer)
        except UpstreamFailure as failure:
            if self._reply.has_content:
                raise error_of(failure) from None
            logger.warning("%s does not tell tokens: %s", node.name, failure.reason)
            return False
        return True


def _spec_header(profile: Profile, host: Profile) -> tuple[str, str]:
    request = LoadRequest(
        model_id=profile.id,
        harness=host.harness,
        quant=host.quant,
        engine=host.engine,
        base=profile.base,
    )
    return SPEC_HEADER, b64encode(encode_json(request)).decode()
