"""One attack: a function whose name says what must hold, and what it yields where it does not."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import httpx

from tests.attack.bystander import Bystander
from tests.chaos.service import Service


class Harm(StrEnum):
    """What an attack has come to; each is a number of the result and must be zero."""

    OPENED = "opened"  # somebody got in who may not
    STARVED = "starved"  # the service kept others waiting
    UNSETTLED = "unsettled"  # something that must end does not
    LEAKED = "leaked"  # somebody learned what they may not
    ESCAPED = "escaped"  # something ran, read or wrote where it may not


@dataclass(frozen=True)
class Finding:
    """One promise that was broken."""

    harm: Harm
    what: str


class CannotRun(Exception):
    """The case needs what this machine or this service lacks; the message says what."""


@dataclass(frozen=True)
class Target:
    """What is attacked. Every case finds it in order, and leaves it so."""

    service: Service
    keys: dict[str, str]  # by scope: read, submit, admin
    folder: Path  # for files of the attackers
    others: Bystander  # its `resting` is for cases that stop the service on purpose
    deadline: float = field(default=float("inf"))  # on the monotonic clock, until when the case must be done
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)  # completed ones that cases share, by what they are

    @property
    def url(self) -> str:
        """Where the API is."""
        return self.service.url

    def client(self, scope: str | None = "submit", timeout_seconds: float = 30) -> httpx.Client:
        """A client with the key of this scope, or with none."""
        headers = {"Authorization": f"Bearer {self.keys[scope]}"} if scope else {}
        return httpx.Client(base_url=self.url, headers=headers, timeout=timeout_seconds)


Attack = Callable[[Target], Iterable[Finding]]
CASES: dict[str, Attack] = {}
ROUGH: set[str] = set()  # these come last


def case(attack: Attack) -> Attack:
    """Enter a function in the registry of cases. It yields a Finding for each promise that is broken."""
    name = f"{attack.__module__.rsplit('.', 1)[-1]}.{attack.__name__}"
    assert CASES.setdefault(name, attack) is attack, name
    return attack


def rough_case(attack: Attack) -> Attack:
    """The same for one that stops or moves parts of the service: it runs after the others."""
    ROUGH.add(f"{attack.__module__.rsplit('.', 1)[-1]}.{attack.__name__}")
    return case(attack)
