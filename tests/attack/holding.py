"""Clients and receivers that hold on to what they have, beside others that want to be served."""

from collections.abc import Iterator

from jobs.storage.tables import engine_for
from tests.attack import connections, receivers
from tests.attack.case import Finding, Harm, Target, case

CONNECTIONS = 300
HELD_SECONDS = 4.0
SLOW_MS = 3000.0  # of /health beside them, on two cores


@case
def connections_that_never_finish_hold_nobody_up(target: Target) -> Iterator[Finding]:
    """Half a head, half a body, silence, half of a second request: 300 of each, without a key."""
    for kind in connections.BEGINNINGS:
        held = connections.hold_half_open(target.url, CONNECTIONS, HELD_SECONDS, kind)
        yield from _judge(f"300 with half a request ({kind})", held)


@case
def connections_that_trickle_hold_nobody_up(target: Target) -> Iterator[Finding]:
    """A byte a second, in the head and in the body; new ones as fast as it goes; answers that are not read."""
    for attack in (connections.trickle_headers, connections.trickle_body, connections.read_nothing):
        yield from _judge(attack.__name__, attack(target.url, CONNECTIONS, HELD_SECONDS))
    yield from _judge("keep_coming", connections.keep_coming(target.url, seconds=HELD_SECONDS))


def _judge(what: str, held: connections.HeldUp) -> Iterator[Finding]:
    if held.failed or not held.probes or held.max_latency_ms > SLOW_MS:
        yield Finding(Harm.STARVED, f"{what}: {held}")


@case
def dead_receivers_keep_no_good_one_waiting(target: Target) -> Iterator[Finding]:
    """A thousand deliveries, first attempts and repeats, to receivers that take calls and say nothing."""
    engine = engine_for(str(target.service.settings.database_url))
    for dead, are_repeats in ((1, False), (12, True)):
        calls = receivers.call_beside_dead_receivers(engine, dead, are_repeats=are_repeats)
        if calls.late:
            yield Finding(Harm.STARVED, f"{dead} dead receivers, repeats: {are_repeats}: {calls}")


@case
def a_thousand_dead_addresses_of_one_client_keep_no_other_client_waiting(target: Target) -> Iterator[Finding]:
    """A delivery to each of them, first attempts and repeats, beside a receiver of another that was never called."""
    engine = engine_for(str(target.service.settings.database_url))
    for are_repeats in (False, True):
        calls = receivers.call_beside_dead_receivers(
            engine, dead=1000, hosts=1000, are_repeats=are_repeats, client="key of an attacker"
        )
        if calls.late:
            yield Finding(Harm.STARVED, f"1000 dead addresses, repeats: {are_repeats}: {calls}")
