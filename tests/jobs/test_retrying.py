"""Tries and pauses: how many, how long, what is told, and what ends them."""

import pytest
from tenacity import retry_if_exception, retry_if_exception_type, retry_if_not_result

from jobs.retrying import patient, waited_seconds


class Server:
    """Fails a number of times, then answers; keeps the pauses between."""

    def __init__(self, failures, error=None):
        self.left, self.error, self.pauses, self.told = failures, error, [], []

    def ask(self):
        self.left -= 1
        if self.left >= 0 and self.error:
            raise self.error
        return self.left < 0

    def options(self):
        return {"tell": self.told.append, "sleep": self.pauses.append}


AWAY = retry_if_exception_type(ConnectionError)


def test_pauses_grow_to_the_longest_and_are_told_once():
    server = Server(6, ConnectionError("away"))
    tries = patient(AWAY, pauses=(0.5, 5.0), **server.options())
    assert tries(server.ask)
    assert server.pauses == [0.5, 1, 2, 4, 5, 5]
    assert server.told == ["ConnectionError"]
    assert waited_seconds(tries) > 0
    assert tries(server.ask)
    assert waited_seconds(tries) == 0


@pytest.mark.parametrize(("seconds", "pauses"), [(0, []), (0.4, []), (1.5, [1])])
def test_no_try_begins_after_the_time_and_the_last_error_is_raised_as_it_is(seconds, pauses):
    server = Server(9, ConnectionError("away"))
    with pytest.raises(ConnectionError, match="away"):
        patient(AWAY, seconds, (1, 5.0), **server.options())(server.ask)
    assert server.pauses == pauses


def test_a_result_may_be_worth_another_try_and_the_last_one_stands():
    server = Server(2)
    assert patient(retry_if_not_result(bool), **server.options())(server.ask)
    server.left = 9
    assert not patient(retry_if_not_result(bool), 0, **server.options())(server.ask)


def test_what_is_no_outage_is_raised_at_once():
    server = Server(9, ValueError("bad"))
    with pytest.raises(ValueError, match="bad"):
        patient(AWAY, **server.options())(server.ask)
    assert not server.pauses


def test_a_signal_that_comes_while_an_outage_is_handled_ends_the_tries():
    signal = SystemExit()
    signal.__context__ = ConnectionError("away")
    server = Server(9, signal)
    with pytest.raises(SystemExit):
        patient(retry_if_exception(lambda _: True), **server.options())(server.ask)
    assert not server.pauses


def test_a_pause_may_end_the_tries():
    class GivenUp(Exception):
        pass

    def pause(_seconds):
        raise GivenUp

    with pytest.raises(GivenUp):
        patient(AWAY, sleep=pause)(Server(9, ConnectionError()).ask)
