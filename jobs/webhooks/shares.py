"""Shares the webhook senders fairly between clients, receivers and addresses.

A receiver is a host and port. One that accepts and never responds holds a sender for the whole time of an attempt, so
each has a share of the free senders: eight if it is the only one, fewer beside others, and at least one. Receivers at
one address (names and ports are cheap) have 64 senders together; one without a sender gets its first while they have
fewer than 96. Receivers with failed attempts have at most half of the senders, so that some stay free for receivers
that responded last time.

All of this is counted per client (the API key that submitted the jobs), and a client has at most three times as many
senders as are free: addresses are cheap too, keys are not.
"""

import threading
from collections import Counter, OrderedDict
from collections.abc import Hashable
from ipaddress import IPv6Address, IPv6Network
from typing import Any
from urllib.parse import urlsplit

from jobs.webhooks.targets import Address, unwrap

SENDERS = 192
SHARE = 24  # a receiver gets at most 1 / SHARE of the free senders
CLIENT_SHARE = 3  # a client gets at most so many times the free senders
FAILING = SENDERS // 2  # for receivers with failed attempts
AT_ONE_ADDRESS, FIRST_AT_ONE_ADDRESS = SENDERS // 3, SENDERS // 2  # the latter for a receiver's first sender
FOR_ANSWERING = 16
REMEMBERED = 4096

Receiver = tuple[str, str]  # of a client, its host and port


class AddressBusy(Exception):
    """The receivers at this address have all their senders in use. No attempt was made."""


class SenderSlot:
    """A sender in use: client and receiver, whether attempts there have failed, and the address it calls."""

    def __init__(self, receiver: Receiver, is_failing: bool) -> None:
        self.receiver = receiver
        self.is_failing = is_failing
        self.address = ""

    @property
    def client(self) -> str:
        """The client whose delivery it is."""
        return self.receiver[0]


class Shares:
    """Counts the senders in use. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._taken = 0
        self._failing = 0
        self._clients = Counter[str]()
        self._failing_of = Counter[str]()  # by client
        self._receivers = Counter[Receiver]()
        self._addresses = Counter[tuple[str, str]]()  # by client
        self._answering: OrderedDict[Receiver, None] = OrderedDict()

    @property
    def is_full(self) -> bool:
        """Whether no sender is free."""
        return self._taken >= SENDERS

    def take(self, name: str, is_failing: bool, client: str = "") -> SenderSlot | None:
        """Take a sender; None if this receiver or this client has used up its share."""
        receiver = (client, name)
        with self._lock:
            is_answering = receiver in self._answering
            free = SENDERS - self._taken - (0 if is_answering else FOR_ANSWERING)
            if free <= 0 or not _has_room(self._clients[client], free):
                return None
            is_failing = is_failing and not is_answering
            if is_failing and not _has_room(self._failing_of[client], FAILING - self._failing):
                return None
            if self._receivers[receiver] >= max(1.0, (SENDERS - self._taken) / SHARE):
                return None
            self._taken += 1
            self._clients[client] += 1
            self._receivers[receiver] += 1
            self._failing += is_failing
            self._failing_of[client] += is_failing
            return SenderSlot(receiver, is_failing)

    def enter(self, slot: SenderSlot, address: Address) -> None:
        """Move the sender to the address it is about to call. Raises AddressBusy."""
        place = _name(address)
        with self._lock:
            self._leave(slot)
            limit = AT_ONE_ADDRESS if self._receivers[slot.receiver] > 1 else FIRST_AT_ONE_ADDRESS
            if self._addresses[slot.client, place] >= limit:
                raise AddressBusy(place)
            self._addresses[slot.client, place] += 1
            slot.address = place

    def give_back(self, slot: SenderSlot, has_answered: bool | None = None) -> None:
        """Return the sender; `has_answered` is None if no call was made."""
        with self._lock:
            self._leave(slot)
            self._taken -= 1
            self._failing -= slot.is_failing
            _count_down(self._clients, slot.client)
            _count_down(self._failing_of, slot.client, slot.is_failing)
            _count_down(self._receivers, slot.receiver)
            if has_answered is not None:
                self._answering.pop(slot.receiver, None)
            if has_answered:
                self._answering[slot.receiver] = None
                if len(self._answering) > REMEMBERED:
                    self._answering.popitem(last=False)

    def _leave(self, slot: SenderSlot) -> None:
        if slot.address:
            _count_down(self._addresses, (slot.client, slot.address))
            slot.address = ""


def _has_room(taken: int, free: int) -> bool:
    """Whether a client with `taken` senders may take one more."""
    return free > 0 and taken < max(1, CLIENT_SHARE * free)


def name_receiver(url: str) -> str:
    """Normalized host and port of a webhook."""
    try:
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        return f"{(parts.hostname or '').rstrip('.')}:{port}"
    except ValueError:  # not a URL that can be called
        return ""


def _name(address: Address) -> str:
    """The address, or for IPv6 the network that one customer gets."""
    address = unwrap(address)
    return str(IPv6Network((address, 64), strict=False)) if isinstance(address, IPv6Address) else str(address)


def _count_down(counter: Counter[Any], name: Hashable, by: int = 1) -> None:
    counter[name] -= by
    if counter[name] <= 0:
        del counter[name]
