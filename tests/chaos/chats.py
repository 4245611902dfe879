"""Somebody who asks models meanwhile: each request ends with a whole answer or an error that says to try again."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import httpx

from tests.chaos.beside import Finding
from tests.chaos.service import MODEL, Service
from tests.patience import PATIENCE

PAUSE_SECONDS = 2.0
ANSWER_SECONDS = 60.0  # TUNEYARD_GENERATION_SECONDS
IDLE_SECONDS = 20.0  # TUNEYARD_GENERATION_IDLE_SECONDS
WAIT_SECONDS = 5  # of `Prefer`
SPARE_SECONDS = 20.0 * PATIENCE  # to find the model, and to be told
LIMIT_SECONDS = ANSWER_SECONDS + WAIT_SECONDS + SPARE_SECONDS
BACK_SECONDS = 120.0 * PATIENCE  # for an answer once no job runs
ADAPTERS = 7  # that jobs make
PROCESS = "tasks.generation"


class Outcome(StrEnum):
    """How a request ended."""

    ANSWERED = "answered"
    TRY_AGAIN = "try again"  # an error that is documented as such
    CUT_OFF = "cut off"  # the API was stopped
    BROKEN = "broken"


@dataclass(frozen=True)
class Chat:
    """A request and how it ended; times as `time.monotonic`. `text` is the answer, or the error."""

    model: str
    began: float
    ended: float
    outcome: Outcome
    text: str


class Chatter(threading.Thread):
    """Asks, one request after the other, until `close`. `chats` has what became of them, `errors` how many of which."""

    def __init__(self, service: Service, away: Callable[[float, float], bool]) -> None:
        """`away` tells whether the API was stopped between two moments."""
        super().__init__(name="chatter")
        self.chats: list[Chat] = []
        self.errors: dict[str, int] = {}
        self.greedy: list[str] = []  # processes that would not be the first to go
        self._service = service
        self._away = away
        self._client = httpx.Client(base_url=service.url, timeout=LIMIT_SECONDS)
        self._stopped = threading.Event()

    @property
    def answers(self) -> int:
        """How many requests got an answer."""
        return sum(chat.outcome is Outcome.ANSWERED for chat in self.chats)

    def run(self) -> None:
        """Ask the base model, and every third time an adapter."""
        number = 0
        while not self._stopped.wait(PAUSE_SECONDS):
            model = f"chaos-{number % ADAPTERS}" if number % 3 == 2 else MODEL
            self.chats.append(self._ask(model, streams=number % 2 == 1))
            number += 1

    def close(self) -> None:
        """Wait for the one that was asked."""
        self._stopped.set()
        self.join()

    def examine(self) -> list[Finding]:
        """What is broken; asks until there is an answer, now that no job runs."""
        until = time.monotonic() + BACK_SECONDS
        while True:
            self.chats.append(last := self._ask(MODEL, streams=False))
            if last.outcome is Outcome.ANSWERED or time.monotonic() > until:
                break
            time.sleep(PAUSE_SECONDS)
        findings = [*judge(self.chats, self._away), *(Finding("memory_taken", what) for what in self.greedy)]
        if last.outcome is not Outcome.ANSWERED:
            findings.append(Finding("chats_failed", f"no answer once no job runs: {last.text}"))
        self._client.close()
        return findings

    def _ask(self, model: str, streams: bool) -> Chat:
        body = {"model": model, "messages": [{"role": "user", "content": "Hello there"}], "stream": streams}
        headers = {"Prefer": f"wait={WAIT_SECONDS}"}
        began = time.monotonic()

        def end(outcome: Outcome, text: str) -> Chat:
            return Chat(model, began, time.monotonic(), outcome, text)

        try:
            answer = self._client.post(
                "/v1/chat/completions", json=body | {"temperature": 0, "max_tokens": 12}, headers=headers
            )
        except httpx.TimeoutException:
            return end(Outcome.BROKEN, f"no end within {LIMIT_SECONDS:.0f} s")
        except httpx.TransportError as error:
            return end(Outcome.CUT_OFF, repr(error))
        try:
            text, error = read_stream(answer.text) if streams and answer.is_success else read_answer(answer)
        except (ValueError, LookupError, TypeError) as problem:
            return end(Outcome.BROKEN, f"{answer.status_code} {answer.text[:300]}: {problem!r}")
        if error is None:
            self._look_at_memory()
            return end(Outcome.ANSWERED, text)
        code = error.get("code")
        self.errors[str(code)] = self.errors.get(str(code), 0) + 1
        is_none = code == "model_not_found" and model != MODEL  # of an adapter that no job has made yet
        if is_none or (answer.status_code in (200, 503) and error.get("type") == "server_error" and code):
            return end(Outcome.TRY_AGAIN, str(error))
        return end(Outcome.BROKEN, f"{answer.status_code} {error}")

    def _look_at_memory(self) -> None:
        """The process that has answered is the first to go where memory runs out, and gives way to jobs."""
        for process in self._service.find_own(PROCESS):
            try:
                score = Path(f"/proc/{process.pid}/oom_score_adj").read_text(encoding="ascii").strip()
            except OSError:  # it has ended
                continue
            if score != "1000":
                self.greedy.append(f"process {process.pid} has an oom_score_adj of {score}")


def read_answer(answer: httpx.Response) -> tuple[str, dict[str, Any] | None]:
    """The text of a response, or its error."""
    content = answer.json()
    if answer.is_success:
        return str(content["choices"][0]["message"]["content"]), None
    return "", dict(content.get("error") or content)


def read_stream(events: str) -> tuple[str, dict[str, Any] | None]:
    """The text of a stream, or its error; one that just ends is an error without a code."""
    lines = [line.removeprefix("data: ") for line in events.splitlines() if line.startswith("data: ")]
    if not lines:
        return "", {"message": "a stream without events"}
    if lines[-1] != "[DONE]":
        last = json.loads(lines[-1])
        return "", dict(last.get("error") or {"message": f"a stream that ends with {lines[-1][:100]}"})
    choices = [choice for line in lines[:-1] for choice in json.loads(line)["choices"]]
    if choices[-1]["finish_reason"] is None:
        return "", {"message": "an answer that has no end"}
    return "".join(choice["delta"].get("content") or "" for choice in choices), None


def judge(chats: list[Chat], away: Callable[[float, float], bool]) -> Iterator[Finding]:
    """Each ended in time with an answer, or an error that is worth a retry; all answers of the base model are one."""
    texts = {chat.text for chat in chats if chat.outcome is Outcome.ANSWERED and chat.model == MODEL}
    if len(texts) > 1:
        yield Finding("chats_failed", f"one question to one model has several answers: {texts}")
    for chat in chats:
        seconds = chat.ended - chat.began
        if chat.outcome is Outcome.BROKEN:
            yield Finding("chats_failed", f"{chat.model}: {chat.text}")
        elif seconds > LIMIT_SECONDS:
            yield Finding("chats_failed", f"{chat.model}: {chat.outcome} after {seconds:.0f} s: {chat.text}")
        elif chat.outcome is Outcome.CUT_OFF and not away(chat.began, chat.ended):
            yield Finding("chats_failed", f"{chat.model}: {chat.text}, and the API was not stopped")
