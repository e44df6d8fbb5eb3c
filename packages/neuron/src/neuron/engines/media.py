"""Puts the data of media where a request has their URLs, so that an engine fetches nothing."""

import asyncio
import binascii
import importlib
import io
import re
import warnings
from base64 import b64decode, b64encode
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from cortex_core.errors import InvalidRequestError
from cortex_core.harness import Route
from cortex_core.units import bytes_from_mib
from neuron.engines.media_fetch import Fetched, fetch
from neuron.lifecycle.media import Medium, Source, check_data_uri, media_of, read_url
from neuron.settings import MediaSettings

_MAX_MEDIA = 64
"""In one request; engines take far fewer."""

_LARGEST_PICTURES = 8
"""Pictures of the largest size that one request may have: they are unpacked together, and a few
kilobytes may hold hundreds of megabytes."""

_TYPE = re.compile(r"[a-z0-9.+/-]+")

Fetch = Callable[[Source, int, float], Awaitable[Fetched]]
"""Takes where to ask, most bytes, and seconds.

Raises:
    OSError: it could not be had, for whatever reason.
"""


class MediaPolicy:
    """Does what `[media]` says.

    Args:
        settings: of it.
        fetch: gets what a URL points at.
    """

    def __init__(self, settings: MediaSettings, fetch: Fetch = fetch) -> None:
        self._settings = settings
        self._fetch = fetch
        self._max_bytes = bytes_from_mib(settings.max_mb)

    async def settle(self, route: Route, body: Any) -> None:
        """Check every medium of a request, and put the data of those that are elsewhere into it.

        Args:
            route: where it was asked.
            body: the request's JSON; changed in place.

        Raises:
            InvalidRequestError: one may not be used, or cannot be had; `param` says which.
        """
        if not isinstance(body, dict):
            return
        media = list(media_of(route, body))
        if len(media) > _MAX_MEDIA:
            raise InvalidRequestError(f"{_MAX_MEDIA} media may be sent at most", param="messages")
        pixels = 0
        for medium in media:
            uri, size = await self._settled(medium)
            pixels += size
            if pixels > _LARGEST_PICTURES * self._settings.max_pixels:
                raise InvalidRequestError("the images are too large together", param=medium.param)
            _put(body, medium, uri)

    async def _settled(self, medium: Medium) -> tuple[str, int]:
        """Return the data URI that stands for a medium, and the pixels of its pictures."""
        settings = self._settings
        if settings.urls == "off":
            raise InvalidRequestError(f"no {medium.kind} is taken here", param=medium.param)
        uri = medium.url
        if uri[:5].lower() != "data:":
            uri = await self._fetched(medium)
        begin = check_data_uri(msgspec.structs.replace(medium, url=uri), self._max_bytes)
        pictures = [uri[begin:]] if medium.kind == "image" else []
        if uri[:begin].lower().startswith("data:video/jpeg;"):
            # Not a film: vLLM unpacks each of these as a picture.
            pictures = uri[begin:].split(",")
        size = await asyncio.to_thread(_count_pixels, pictures, settings.max_pixels, medium.param)
        return uri, size

    async def _fetched(self, medium: Medium) -> str:
        settings = self._settings
        hosts = settings.allowed_hosts if settings.urls == "allow-list" else ()
        source = read_url(medium, hosts)
        try:
            got = await self._fetch(source, self._max_bytes, settings.fetch_timeout_s)
        except OSError:
            # Why is not said: it would tell what is where behind this node.
            raise InvalidRequestError(
                f"the {medium.kind} could not be fetched", param=medium.param
            ) from None
        kind = got.content_type
        if not _TYPE.fullmatch(kind) or not kind.startswith(f"{medium.kind}/"):
            # Stores of files call everything a stream of bytes; what it is shows when it is read.
            kind = f"{medium.kind}/octet-stream"
        return f"data:{kind};base64,{b64encode(got.data).decode()}"


def _count_pixels(pictures: list[str], max_pixels: int, param: str) -> int:
    return sum(check_pixels(data, max_pixels, param=param) for data in pictures)


def check_pixels(data: str, max_pixels: int, *, param: str) -> int:
    """Return the pixels of a picture by its head, before anybody unpacks it; blocks.

    Args:
        data: in base64.
        max_pixels: most that it may have.
        param: of errors.

    Raises:
        InvalidRequestError: it is too large, or no picture.
    """
    # Not by a statement: it is there only with vLLM.
    pictures: Any = importlib.import_module("PIL.Image")
    unreadable = InvalidRequestError("the image cannot be read", param=param)
    try:
        with warnings.catch_warnings():
            # Pillow has a limit of its own, which it first warns of.
            warnings.simplefilter("ignore")
            with pictures.open(io.BytesIO(b64decode(data))) as picture:
                width, height = picture.size
    except (binascii.Error, OSError, ValueError, SyntaxError, pictures.DecompressionBombError):
        # What Pillow says of it may name addresses in memory (CVE-2026-22778).
        raise unreadable from None
    if width * height > max_pixels:
        raise InvalidRequestError(
            f"the image has {width} x {height} pixels; {max_pixels} may be sent", param=param
        )
    return int(width * height)


def _put(body: Any, medium: Medium, uri: str) -> None:
    value = body
    for step in medium.where[:-1]:
        value = value[step]
    value[medium.where[-1]] = uri
