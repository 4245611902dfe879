"""Which receivers have how many of the senders."""

import ipaddress

import pytest

from jobs.webhooks.shares import AT_ONE_ADDRESS, FAILING, SENDERS, AddressBusy, Shares, name_receiver

NAMES = 120  # a client alone may call as many at once
HERE = ipaddress.ip_address("192.0.2.1")


def take_all(shares, receiver, is_failing=False, client=""):
    tickets = []
    while ticket := shares.take(receiver, is_failing, client):
        tickets.append(ticket)
    return tickets


def test_an_only_receiver_has_eight_senders_and_twenty_dead_ones_leave_one_for_another():
    shares = Shares()
    assert len(take_all(shares, "only:80")) == 8
    counts = [len(take_all(shares, f"dead-{number}:80")) for number in range(20)]
    assert min(counts) >= 1
    assert shares.take("good:80", False) is not None


def test_receivers_that_have_failed_leave_room_for_others():
    shares = Shares()
    for number in range(500):
        take_all(shares, f"dead-{number}:80", is_failing=True)
    assert len([1 for number in range(500) if shares.take(f"new-{number}:80", False)]) >= (SENDERS - FAILING) / 2


def test_a_receiver_that_answered_is_called_beside_any_number_of_new_ones():
    shares = Shares()
    shares.give_back(shares.take("good:80", False), has_answered=True)
    for number in range(500):
        take_all(shares, f"dead-{number}:80")
    assert shares.take("good:80", False) is not None
    assert shares.take("new:80", False) is None


@pytest.mark.parametrize(
    ("addresses", "is_one"),
    [
        (["192.0.2.1"], True),
        (["192.0.2.1", "::ffff:192.0.2.1", "64:ff9b::c000:201"], True),
        (["2001:db8::1", "2001:db8::2", "2001:db8:0:0:ffff::9"], True),
        (["192.0.2.1", "192.0.2.2"], False),
    ],
)
def test_names_of_one_address_have_its_senders_together(addresses, is_one):
    shares, busy = Shares(), 0
    for number in range(NAMES):
        ticket = shares.take(f"name-{number}:80", False)
        try:
            shares.enter(ticket, ipaddress.ip_address(addresses[number % len(addresses)]))
        except AddressBusy:
            busy += 1
            shares.give_back(ticket)
    assert (busy > 0) == is_one
    assert NAMES - busy > AT_ONE_ADDRESS


def test_all_is_as_before_once_everybody_is_done():
    shares = Shares()
    tickets = [ticket for number in range(300) for ticket in take_all(shares, f"{number}:80", number % 2 == 0)]
    for ticket in tickets:
        shares.enter(ticket, HERE) if tickets.index(ticket) < AT_ONE_ADDRESS else None
        shares.give_back(ticket, has_answered=False)
    assert (shares._taken, shares._failing, len(shares._receivers), len(shares._addresses)) == (0, 0, 0, 0)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("http://Dead.example/a", "http://dead.example:80/b?c"),
        ("https://dead.example./a", "https://dead.example:443"),
        ("http://dead.example:99999/", "http://[dead"),
    ],
)
def test_a_receiver_has_one_name_however_it_is_spelled(one, other):
    assert name_receiver(one) == name_receiver(other)


@pytest.mark.parametrize("is_failing", [False, True])
def test_a_client_leaves_room_for_others_however_many_receivers_and_addresses_it_names(is_failing):
    shares = Shares()
    for client in range(3):
        for number in range(500):
            take_all(shares, f"dead-{number}:80", is_failing, f"client {client}")
    for number in range(AT_ONE_ADDRESS):  # whose receiver is at the address of dead ones
        if ticket := shares.take(f"name-{number}:80", False, "client 0"):
            shares.enter(ticket, HERE)
    ticket = shares.take("dead-1:80", is_failing, "another")
    shares.enter(ticket, HERE)


def test_a_client_alone_has_most_of_the_senders():
    shares = Shares()
    for number in range(500):
        take_all(shares, f"dead-{number}:80")
    assert shares._taken >= NAMES
