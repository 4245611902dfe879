"""How many webhooks are sent at once, and to whom: no receiver keeps the others waiting.

A receiver is a host and port. One that accepts and never answers holds a sender for as long as an attempt may last, so
each may have a share of those that are free: eight when it is the only one, fewer beside others, and always one.
Receivers at one address (names are cheap, so are ports) have half of all senders together, and further ones a quarter.
Repeats have half of them at most, so that there is room for first attempts, and some are kept for receivers that
answered when they were last called.
"""

import threading
from collections import Counter, OrderedDict
from ipaddress import IPv6Address, IPv6Network
from urllib.parse import urlsplit

from jobs.targets import Address, unwrap

SENDERS = 128
SHARE = 16  # a receiver has this part of the free senders
REPEATS = SENDERS // 2
AT_ONE_ADDRESS, FIRST_AT_ONE_ADDRESS = SENDERS // 2, SENDERS * 3 // 4  # the latter for who has no other sender
FOR_ANSWERING = 16
REMEMBERED = 4096


class AddressBusy(Exception):
    """The receivers at this address have all the senders that they may have. No attempt was made."""


class Ticket:
    """A sender's place: for whom, whether it is a repeat, and the address that it calls."""

    def __init__(self, receiver: str, is_repeat: bool) -> None:
        self.receiver = receiver
        self.is_repeat = is_repeat
        self.address = ""


class Shares:
    """Who has how many of the senders. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._taken = 0
        self._repeats = 0
        self._receivers = Counter[str]()
        self._addresses = Counter[str]()
        self._answering: OrderedDict[str, None] = OrderedDict()

    @property
    def is_full(self) -> bool:
        """Whether no sender is free."""
        return self._taken >= SENDERS

    def take(self, receiver: str, is_repeat: bool) -> Ticket | None:
        """A place for a sender; None where this receiver has its share."""
        with self._lock:
            free = SENDERS - self._taken - (0 if receiver in self._answering else FOR_ANSWERING)
            if free <= 0 or (is_repeat and self._repeats >= REPEATS):
                return None
            if self._receivers[receiver] >= max(1.0, (SENDERS - self._taken) / SHARE):
                return None
            self._taken += 1
            self._repeats += is_repeat
            self._receivers[receiver] += 1
            return Ticket(receiver, is_repeat)

    def enter(self, ticket: Ticket, address: Address) -> None:
        """The sender is about to call this address, and leaves the one before. Raises AddressBusy."""
        place = _name(address)
        with self._lock:
            self._leave(ticket)
            limit = AT_ONE_ADDRESS if self._receivers[ticket.receiver] > 1 else FIRST_AT_ONE_ADDRESS
            if self._addresses[place] >= limit:
                raise AddressBusy(place)
            self._addresses[place] += 1
            ticket.address = place

    def give_back(self, ticket: Ticket, has_answered: bool | None = None) -> None:
        """The sender is free again; `has_answered` is None where nobody was called."""
        with self._lock:
            self._leave(ticket)
            self._taken -= 1
            self._repeats -= ticket.is_repeat
            _count_down(self._receivers, ticket.receiver)
            if has_answered is not None:
                self._answering.pop(ticket.receiver, None)
            if has_answered:
                self._answering[ticket.receiver] = None
                if len(self._answering) > REMEMBERED:
                    self._answering.popitem(last=False)

    def _leave(self, ticket: Ticket) -> None:
        if ticket.address:
            _count_down(self._addresses, ticket.address)
            ticket.address = ""


def name_receiver(url: str) -> str:
    """Host and port of a webhook, however they are spelled."""
    try:
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        return f"{(parts.hostname or '').rstrip('.')}:{port}"
    except ValueError:  # no attempt can be made at it
        return ""


def _name(address: Address) -> str:
    """The address, or the network that one customer is given of IPv6."""
    address = unwrap(address)
    return str(IPv6Network((address, 64), strict=False)) if isinstance(address, IPv6Address) else str(address)


def _count_down(counter: Counter[str], name: str) -> None:
    counter[name] -= 1
    if counter[name] <= 0:
        del counter[name]
