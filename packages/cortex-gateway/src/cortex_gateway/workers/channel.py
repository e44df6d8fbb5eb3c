"""Messages over a pair of sockets: what is said in one turn of the loop is written at once."""

import asyncio
import logging
import socket
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar, cast

import msgspec

logger = logging.getLogger(__name__)

In = TypeVar("In")

_LENGTH_BYTES = 4

LATER_S = 0.005
"""How long what is not urgent waits for more."""


class Channel(asyncio.Protocol, Generic[In]):
    """One end of the pair.

    Args:
        decoder: of the other side's frames.
        take: gets what the other side says, message by message.
        is_lost: called once, when the other side is gone.
    """

    def __init__(
        self,
        decoder: msgspec.msgpack.Decoder[list[In]],
        take: Callable[[In], None],
        is_lost: Callable[[], None],
    ) -> None:
        self._decoder = decoder
        self._encoder = msgspec.msgpack.Encoder()
        self._take = take
        self._is_lost = is_lost
        self._buffer = bytearray()
        self._unsent: list[msgspec.Struct] = []
        self._timer: asyncio.TimerHandle | None = None
        self._is_urgent = False
        self._transport: asyncio.Transport | None = None

    def say(self, message: msgspec.Struct) -> None:
        """Say something, in order; what is said to nobody is lost."""
        if self._transport is None:
            return
        self._unsent.append(message)
        if not self._is_urgent:
            self._is_urgent = True
            asyncio.get_running_loop().call_soon(self._flush)

    def note(self, message: msgspec.Struct) -> None:
        """Say something, in order, that can wait a moment for what else there is to say."""
        if self._transport is None:
            return
        self._unsent.append(message)
        if self._timer is None and not self._is_urgent:
            self._timer = asyncio.get_running_loop().call_later(LATER_S, self._flush)

    def close(self) -> None:
        """Say what is left, and end."""
        if self._transport is not None:
            self._flush()
            self._transport.close()

    def _flush(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._is_urgent = None, False
        unsent, self._unsent = self._unsent, []
        if unsent and self._transport is not None:
            self._transport.write(self._frame(unsent))

    def _frame(self, messages: Sequence[msgspec.Struct]) -> bytes:
        try:
            return frame(self._encoder, messages)
        except OverflowError:
            # A node may report any number, and msgpack has 64 bits. The others go their way.
            kept = [one for one in messages if _is_sayable(self._encoder, one)]
            logger.error("left out %d messages: a number is too large", len(messages) - len(kept))
            return frame(self._encoder, kept)

    # What the transport says.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        # uvloop's are of no type of asyncio's.
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Take every message that is whole."""
        self._buffer += data
        for body in whole(self._buffer):
            for message in self._decoder.decode(body):
                self._take(message)

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._transport = None
        self._is_lost()


def frame(encoder: msgspec.msgpack.Encoder, messages: Sequence[msgspec.Struct]) -> bytes:
    """Return messages as they are written: the length in four bytes, then a list."""
    body = encoder.encode(messages)
    return len(body).to_bytes(_LENGTH_BYTES, "big") + body


def _is_sayable(encoder: msgspec.msgpack.Encoder, message: msgspec.Struct) -> bool:
    try:
        encoder.encode(message)
    except OverflowError:
        return False
    return True


def whole(buffer: bytearray) -> list[bytes]:
    """Take the whole frames out of what has come, and return what is in them."""
    found, at = [], 0
    while len(buffer) - at >= _LENGTH_BYTES:
        end = at + _LENGTH_BYTES + int.from_bytes(buffer[at : at + _LENGTH_BYTES], "big")
        if end > len(buffer):
            break
        found.append(bytes(buffer[at + _LENGTH_BYTES : end]))
        at = end
    del buffer[:at]
    return found


async def connect(channel: Channel[In], sock: socket.socket) -> None:
    """Have a channel speak over a connected socket, which is the channel's from now on."""
    sock.setblocking(False)
    await asyncio.get_running_loop().create_connection(lambda: channel, sock=sock)
