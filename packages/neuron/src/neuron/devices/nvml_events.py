"""Waits for Xids, NVIDIA's numbered reports of faults, in a thread of its own."""

import ctypes
import logging
import threading
from collections.abc import Callable, Mapping

import msgspec

from cortex_core.ids import DeviceIndex
from neuron.devices.nvml_api import EventSet, Handle, Nvml

logger = logging.getLogger(__name__)

OnXid = Callable[[DeviceIndex, int], None]
"""Takes a device and the number of the Xid; called from the thread that waits."""

# How long a wait inside the library lasts at the most: for as long, the library cannot be closed.
_WAIT_MS = 500

# A wait that fails at once is not begun again at once.
_PAUSE_S = 1.0

# How long a wait under way is waited for before the library is closed under it.
_RELEASE_TIMEOUT_S = 5.0


class Card(msgspec.Struct, frozen=True):
    """A whole card, and the devices that are on it: itself, or its slices."""

    handle: Handle
    devices: tuple[DeviceIndex, ...]


class XidListener:
    """Tells of Xids for as long as there are cards to listen to.

    Args:
        nvml: the binding; it is open while there are cards.
        on_xid: is told.
    """

    def __init__(self, nvml: Nvml, on_xid: OnXid) -> None:
        self._nvml = nvml
        self._on_xid = on_xid
        self._cards: tuple[Card, ...] = ()
        self._may_listen = threading.Event()
        self._is_over = threading.Event()
        self._in_library = threading.Lock()
        # A daemon, as a driver that hangs must not keep the process alive.
        threading.Thread(target=self._run, name="device-xids", daemon=True).start()

    def attach(self, cards: tuple[Card, ...]) -> None:
        """Listen to `cards`, at first or after `release`."""
        self._cards = cards
        self._may_listen.set()

    def release(self) -> bool:
        """Stop listening; return whether nothing here uses the library any more."""
        self._may_listen.clear()
        is_free = self._in_library.acquire(timeout=_RELEASE_TIMEOUT_S)
        if is_free:
            self._in_library.release()
        return is_free

    def close(self) -> None:
        """Let the thread end; nobody waits for it."""
        self._is_over.set()

    def _run(self) -> None:
        while not self._is_over.is_set():
            if not self._may_listen.wait(_PAUSE_S):
                continue
            with self._in_library:
                try:
                    self._listen()
                except Exception:
                    # A report that cannot be read must not be the last one that is.
                    logger.exception("Xids are not heard for a moment")
            if self._may_listen.is_set():
                self._is_over.wait(_PAUSE_S)

    def _listen(self) -> None:
        """Register the cards and tell of what they report, until released or until it fails."""
        if not self._goes_on():
            return
        try:
            events = self._nvml.nvmlEventSetCreate()
        except (self._nvml.NVMLError, AttributeError) as error:
            logger.info("Xids are not heard", extra={"reason": str(error)})
            self._may_listen.clear()
            return
        try:
            owners = self._register(events)
            if not owners:
                self._may_listen.clear()
            while self._goes_on() and self._wait(events, owners):
                pass
        finally:
            self._free(events)

    def _goes_on(self) -> bool:
        return self._may_listen.is_set() and not self._is_over.is_set()

    def _register(self, events: EventSet) -> Mapping[int, tuple[DeviceIndex, ...]]:
        owners: dict[int, tuple[DeviceIndex, ...]] = {}
        for card in self._cards:
            try:
                self._nvml.nvmlDeviceRegisterEvents(
                    card.handle, self._nvml.nvmlEventTypeXidCriticalError, events
                )
            except self._nvml.NVMLError as error:
                extra = {"devices": card.devices, "reason": str(error)}
                logger.info("a device reports no Xids", extra=extra)
            else:
                owners[card_key(card.handle)] = card.devices
        return owners

    def _wait(self, events: EventSet, owners: Mapping[int, tuple[DeviceIndex, ...]]) -> bool:
        """Wait once; return whether it is worth waiting again."""
        try:
            event = self._nvml.nvmlEventSetWait_v2(events, _WAIT_MS)
        except self._nvml.NVMLError as error:
            return type(error).__name__ == "NVMLError_Timeout"
        for device in owners.get(card_key(event.device), ()):
            self._on_xid(device, event.eventData)
        return True

    def _free(self, events: EventSet) -> None:
        try:
            self._nvml.nvmlEventSetFree(events)
        except self._nvml.NVMLError as error:
            logger.info("an event set is not freed", extra={"reason": str(error)})


def card_key(handle: Handle) -> int:
    """Return what two handles of one card have in common: pointers are objects of their own."""
    pointed = getattr(handle, "contents", None)
    return id(handle) if pointed is None else ctypes.addressof(pointed)
