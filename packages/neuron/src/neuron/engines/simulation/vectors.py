"""Embeddings of the simulated engine: the same unit vector for the same text."""

import base64
import hashlib
import math
import struct
from typing import Literal

import msgspec

from neuron.engines.simulation.answers import Usage

DEFAULT_DIMENSIONS = 64


class Embedding(msgspec.Struct, frozen=True, kw_only=True):
    """The vector of one input."""

    index: int
    embedding: tuple[float, ...] | str
    """Numbers, or base64 of little-endian 32-bit floats."""
    object: Literal["embedding"] = "embedding"


class EmbeddingList(msgspec.Struct, frozen=True, kw_only=True):
    """Body of an `/v1/embeddings` answer, in input order."""

    data: tuple[Embedding, ...]
    model: str
    usage: Usage
    object: Literal["list"] = "list"


def embed(text: str, dimensions: int) -> bytes:
    """Return a vector of length 1 as little-endian 32-bit floats."""
    # SHAKE-256 gives as many bytes as are asked for; two make one number.
    raw = hashlib.shake_256(text.encode()).digest(2 * dimensions)
    values = [number - 32767.5 for number in struct.unpack(f"<{dimensions}H", raw)]
    norm = math.sqrt(sum(value * value for value in values))
    return struct.pack(f"<{dimensions}f", *(value / norm for value in values))


def as_embedding(index: int, vector: bytes, encoding: Literal["float", "base64"]) -> Embedding:
    """Return a vector in the wanted encoding."""
    match encoding:
        case "base64":
            return Embedding(index=index, embedding=base64.b64encode(vector).decode())
        case "float":
            return Embedding(index=index, embedding=struct.unpack(f"<{len(vector) // 4}f", vector))
