"""The judges of added files and of chats find what is broken where it is broken, and nothing where it is not."""

import random
import time

import pytest

from tests.chaos import additions
from tests.chaos.additions import Adder, Addition, make_rows
from tests.chaos.beside import HARMS, Beside, Finding
from tests.chaos.chats import LIMIT_SECONDS, Chat, Outcome, judge, read_stream
from tests.chaos.service import MODEL
from tests.live_service import serving_api


@pytest.mark.stack
@pytest.mark.timeout(300)
def test_what_becomes_of_files_is_judged_by_their_bytes(stack, tmp_path, monkeypatch):
    monkeypatch.setattr(additions, "PAUSE_SECONDS", 0.1)
    monkeypatch.setattr(additions, "KEEP_SECONDS", -1.0)
    home = tmp_path / "home"
    rng = random.Random(1)  # noqa: S311 - no secret
    with serving_api(stack.model_copy(update={"home": home})) as url:

        def examine(*more):
            adder = Adder(url, rng, time.monotonic() + 200)
            adder.additions = [*more]
            return {finding.harm for finding in adder.examine(home)}

        adder = Adder(url, rng, time.monotonic() + 200)
        adder.start()
        while len(adder.additions) < 5:
            time.sleep(0.1)
        adder.close()
        added = list(adder.additions)
        assert {one.way for one in added} == {"form", "parts", "file", "upload"}
        assert all(one.references == {f"{one.name}@v1"} for one in added)
        assert adder.pick() == f"{added[-1].name}@v1"
        assert adder.examine(home) == []

        lost = Addition("never", make_rows("never", 3), "form", {"never@v1"})
        assert examine(*added, lost) == {"data_lost"}
        added.append(lost)
        again = Addition("never", make_rows("other", 3), "form", {"never@v2"})
        assert examine(*added[:-1], again) >= {"data_half", "data_left"}
        added[-1] = again
        for junk in ("staging/junk", "file-uploads/upload_junk/5-abc"):
            (home / "own-data" / junk).mkdir(parents=True)
        assert examine(*added) >= {"data_left", "data_duplicated"}
        assert examine(*added[1:]) >= {"data_half"}  # one is listed that nobody added


def chat(outcome=Outcome.ANSWERED, seconds=1.0, text="an answer"):
    return Chat(MODEL, 10.0, 10.0 + seconds, outcome, text)


@pytest.mark.parametrize(
    ("broken", "chats"),
    [
        (0, [chat(), chat(Outcome.TRY_AGAIN, text="busy"), chat()]),
        (1, [chat(), chat(text="another answer")]),
        (1, [chat(seconds=LIMIT_SECONDS + 1)]),
        (1, [chat(Outcome.BROKEN, text="500")]),
        (1, [chat(Outcome.CUT_OFF, text="no connection")]),
    ],
)
def test_what_becomes_of_chats_is_judged_by_their_ends(broken, chats):
    assert len([*judge(chats, lambda began, ended: False)]) == broken


def test_an_answer_may_be_cut_off_while_the_api_is_stopped():
    cut = chat(Outcome.CUT_OFF, text="no connection")
    assert [*judge([cut], lambda began, ended: (began, ended) == (10.0, 11.0))] == []


def test_a_stream_must_come_to_its_end():
    piece = 'data: {"choices": [{"index": 0, "delta": {"content": "Hi"}, "finish_reason": null}]}\n\n'
    end = 'data: {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}\n\n'
    assert read_stream(piece + end + "data: [DONE]\n\n") == ("Hi", None)
    for broken in ("", piece, piece + end, piece + "data: [DONE]\n\n"):
        text, error = read_stream(broken)
        assert text == ""
        assert error is not None
        assert "code" not in error
    told = read_stream(
        piece + 'data: {"error": {"code": "generation_failed", "message": "x", "type": "server_error"}}\n\n'
    )
    assert told[1]["code"] == "generation_failed"


def test_the_counts_are_those_of_the_last_line():
    counts = Beside([Finding("data_left", "x"), Finding("data_left", "y")], {"added": 3}).counts
    assert counts == {"added": 3, **dict.fromkeys(HARMS, 0), "data_left": 2}
