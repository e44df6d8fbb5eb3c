"""Which of several replicas answers: one that knows the conversation, else the less busy of two.

Nothing is remembered about conversations. Each one has a favourite among the replicas, which a hash
gives (rendezvous hashing, Thaler and Ravishankar, 1998), so that all gateways agree on it and a
replica that comes or goes moves only its own conversations. A favourite that is busier than the
others is passed over (bounded loads, Mirrokni, Thorup and Zadimoghaddam, 2018).
"""

import hashlib
import math
import re
from collections.abc import Mapping, Sequence

import msgspec

from cortex_core.catalogue import Catalogue, Profile
from cortex_core.errors import NoReplicaError
from cortex_core.fleet.state import NodeHealth, NodeState
from cortex_core.ids import ReplicaId
from cortex_core.replica import Replica
from cortex_core.routing.queue import ceiling

DEFAULT_MAX_IN_FLIGHT = 64
"""Requests that a replica is given at once where nobody says how many it runs together."""

LEADING_BYTES = 2048
"""How much of a conversation's beginning tells it from others."""

_SEARCHED_BYTES = 8192

_BEGINNING = re.compile(rb'"(?:messages|system|input|instructions|prompt)"')

FAVOURITE_FACTOR = 1.25
"""How much busier than the average a favourite may be."""

FAVOURITE_SLACK = 2.0
"""And how many requests more, so that a quiet fleet keeps its favourites."""

KV_PRESSED = 0.8
"""Share of its KV cache from which on a replica is about to preempt requests."""


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """The replica that answers."""

    pair: tuple[NodeState, Replica]
    """With its node."""
    scores: Mapping[ReplicaId, float]
    """Of all that could, in [0, 1]; higher is better."""
    reason: str


def capacity(catalogue: Catalogue, replica: Replica, default: int) -> int:
    """Return how many requests `replica` is given at once."""
    profile = catalogue.profiles.get(replica.id.model)
    return _said(profile) or replica.max_in_flight or default


def _said(profile: Profile | None) -> int | None:
    return None if profile is None else profile.max_in_flight


def depth(replica: Replica, in_flight: Mapping[ReplicaId, int]) -> int:
    """Return how many requests are with `replica`, as far as is known."""
    return in_flight.get(replica.id, replica.in_flight)


def places_left(
    catalogue: Catalogue,
    node: NodeState,
    replica: Replica,
    *,
    in_flight: Mapping[ReplicaId, int],
    default: int,
    now: float,
) -> float:
    """Return how many requests more `replica` may be given; less than none when it has too many.

    What is no neuron (a service elsewhere) has limits of its own, and is given everything.
    """
    resident = node.residents.get(replica.id.model)
    if node.facts is None or resident is None:
        return math.inf
    cap = capacity(catalogue, replica, default)
    left = ceiling(cap, resident.age_s(now)) - depth(replica, in_flight)
    if not node.adapters:
        return left
    # A base and its adapters have one engine, which runs so many requests whosever they are.
    base = node.replicas.get(replica.base or replica.id.model, replica)
    together = sum(depth(one, in_flight) for one in node.sharing(replica))
    return min(left, capacity(catalogue, base, default) - together)


def choose(
    replicas: Sequence[tuple[NodeState, Replica]],
    catalogue: Catalogue,
    *,
    in_flight: Mapping[ReplicaId, int],
    affinity: bytes | None,
    draw: float,
    default: int,
) -> Choice:
    """Choose among replicas that could all answer.

    Args:
        replicas: with their nodes; at least one.
        catalogue: how many requests a copy of the model takes.
        in_flight: requests with each replica.
        affinity: what tells the conversation from others; `None` for none.
        draw: a random number in [0, 1).
        default: see `capacity`.

    Raises:
        NoReplicaError: `replicas` is empty.
    """
    if not replicas:
        raise NoReplicaError("no replica passed the filters")
    scores = score(replicas, catalogue, in_flight=in_flight, default=default)
    if len(replicas) == 1:
        return Choice(pair=replicas[0], scores=scores, reason="it is the only one")
    favourite = _favourite(replicas, affinity, in_flight)
    if favourite is not None:
        return Choice(pair=favourite, scores=scores, reason="it knows the conversation")
    picked = pick(scores, draw)
    pair = next(pair for pair in replicas if pair[1].id == picked)
    return Choice(pair=pair, scores=scores, reason="it is less busy")


def score(
    replicas: Sequence[tuple[NodeState, Replica]],
    catalogue: Catalogue,
    *,
    in_flight: Mapping[ReplicaId, int],
    default: int,
) -> dict[ReplicaId, float]:
    """Score replicas in [0, 1] by how busy they are for their size; an idle one gets 1.

    What waits inside an engine has its whole prefill ahead, so it counts twice more; a KV cache
    that is nearly full counts like a whole capacity of requests. A suspect node scores below
    every sound one.
    """
    scores = {}
    for node, replica in replicas:
        work = 0
        for one in node.sharing(replica):
            work += depth(one, in_flight) + 2 * one.queued
        busy = work / capacity(catalogue, replica, default)
        pressed = (replica.kv_cache_usage or 0.0) - KV_PRESSED
        if pressed > 0:
            busy += pressed / (1 - KV_PRESSED)
        sound = 0.5 + 0.5 / (1.0 + busy)
        scores[replica.id] = sound / 2 if node.health is NodeHealth.SUSPECT else sound
    return scores


def pick(scores: Mapping[ReplicaId, float], draw: float = 0.0) -> ReplicaId:
    """Return the better one of two that are drawn; the smaller id wins a tie.

    Two are enough to keep all about equally busy, and unlike the best of all they do not send
    every gateway to the same replica between two reports (Mitzenmacher, 2001).

    Args:
        scores: at least one.
        draw: a random number in [0, 1).
    """
    ids = sorted(scores)
    if len(ids) > 2:
        spread = draw * len(ids)
        first = min(int(spread), len(ids) - 1)
        second = min(int((spread - first) * (len(ids) - 1)), len(ids) - 2)
        ids = [ids[first], ids[second if second < first else second + 1]]
    return min(ids, key=lambda replica: (-scores[replica], replica))


def affinity_of(session: str | None, body: bytes) -> bytes | None:
    """Return what tells a conversation from others, for the same replica each time.

    Args:
        session: what the caller says in `x-cortex-session`.
        body: of the request; without a session its leading messages are taken, of which a replica
            that has seen them keeps the KV cache.

    Returns:
        A key of bounded size, or `None` when the body has no beginning that is known.
    """
    if session:
        return b"session:" + session.encode()[:LEADING_BYTES]
    found = _BEGINNING.search(body, 0, _SEARCHED_BYTES)
    return None if found is None else body[found.start() : found.start() + LEADING_BYTES]


def _favourite(
    replicas: Sequence[tuple[NodeState, Replica]],
    affinity: bytes | None,
    in_flight: Mapping[ReplicaId, int],
) -> tuple[NodeState, Replica] | None:
    """Return the favourite of a conversation, unless it is too busy or its node is suspect."""
    if affinity is None:
        return None
    conversation = hashlib.blake2b(affinity, digest_size=8)

    def rank(pair: tuple[NodeState, Replica]) -> bytes:
        # A copy, so that a long beginning is not read once for each of many replicas.
        both = conversation.copy()
        both.update(pair[0].name.encode())
        return both.digest()

    found = node, favourite = max(replicas, key=rank)
    if node.health is NodeHealth.SUSPECT:
        return None
    mean = math.fsum(depth(replica, in_flight) for _, replica in replicas) / len(replicas)
    is_too_busy = depth(favourite, in_flight) > mean * FAVOURITE_FACTOR + FAVOURITE_SLACK
    return None if is_too_busy else found
