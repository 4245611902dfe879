"""`Answering`: the requests of the generation process (`tasks.generation`), and the engine that answers them.

Threads: one for each connection, which finds the files and has the prompt written (`tasks.prompt_process`); the main
thread loads models and generates.
"""

import logging
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jobs.errors import ContextTooLong, GenerationBusy
from jobs.settings import Settings
from sft.errors import ModelUnusable
from sft.files.stamps import stamp_folder
from sft.generation.vllm_limits import VllmUnfit
from tasks.engine_switch import EngineSwitch
from tasks.engines import find_texts
from tasks.fetched_adapters import FetchedAdapters
from tasks.generation_room import JobWatch, check_room
from tasks.generation_work import GenerationWork, Key, ReplyStream, read_request
from tasks.model_store import locate_model
from tasks.prompt_process import PromptProcesses, Prompts

logger = logging.getLogger(__name__)

LEAST_BYTES = 2**30  # for the libraries alone
BUSY = "A job needs the memory or the GPU that answers were generated with; try again later"


class Answering:
    """The requests, and the engine that answers them; one base model and its adapters at a time."""

    def __init__(self, folder: Path) -> None:
        self._adapters = FetchedAdapters(folder)
        self._prompts = PromptProcesses()
        self._waiting: list[GenerationWork] = []
        self._changed = threading.Condition()
        self._files = threading.Lock()
        self._switch = EngineSwitch(folder, self._is_beside_job, lambda: self.must_end)
        self._idle_seconds = 60.0
        self._connections = 0
        self.must_end = False
        self._watch = JobWatch(lambda: self._switch.current.is_exclusive, self._yield)

    def accept(self, connection: socket.socket) -> None:
        """Serve a connection from a thread of its own."""
        with self._changed:
            self._connections += 1
        threading.Thread(target=self._serve, args=(connection,), name="connection", daemon=True).start()

    def run(self) -> None:
        """Answer requests until this process is to end."""
        idle_since = time.monotonic()
        while not self.must_end:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._waiting) or self.must_end, timeout=0.5)
                self._waiting = [work for work in self._waiting if not work.is_over]
                group = self._choose()
                is_busy = bool(group) or self._connections > 0
            if group:
                self._answer(group)
            if is_busy:
                idle_since = time.monotonic()
            if time.monotonic() - idle_since > self._idle_seconds:
                return
        with self._changed:
            left, self._waiting = self._waiting, []
        for work in left:
            work.reply.fail(GenerationBusy(BUSY))
            work.reply.join()

    def close(self) -> None:
        """End the processes that write prompts and generate."""
        self._switch.kill()
        self._prompts.close()

    def _yield(self) -> None:
        with self._changed:
            self.must_end = True
            self._changed.notify_all()
        self._switch.kill()

    # -- threads of connections

    def _serve(self, connection: socket.socket) -> None:
        reply = ReplyStream(connection)
        adapter = None
        try:
            work = self._prepare(reply, read_request(connection))
            adapter = work.adapter
            with self._changed:
                self._waiting.append(work)
                self._changed.notify_all()
            reply.watch()
        except Exception as error:
            logger.info("A request for an answer failed: %s", error)
            reply.fail(error)
            reply.join()
        finally:
            self._adapters.release(adapter)
            with self._changed:
                self._connections -= 1

    def _prepare(self, reply: ReplyStream, request: dict[str, Any]) -> GenerationWork:
        settings = Settings.model_validate(request["settings"])
        self._idle_seconds = settings.generation_idle_seconds
        if not self._switch.current.is_started:
            check_room(LEAST_BYTES, is_exclusive=False)
        with self._files:
            base = locate_model(request["base"], settings)
        reference, checkpoint = request["adapter"], request.get("checkpoint")
        created = request.get("created")
        adapter = self._adapters.fetch(reference, checkpoint, settings, created) if reference else None
        try:
            return self._write(reply, request, base, adapter)
        except BaseException:
            self._adapters.release(adapter)
            raise

    def _write(self, reply: ReplyStream, request: dict[str, Any], base: Path, adapter: Path | None) -> GenerationWork:
        stamp = stamp_folder(base)  # before anything is read, so that what is written meanwhile is another model
        if request.get("ids") is not None:
            prompts = Prompts(request["ids"])
        else:
            prompts = self._prompts.write(request["model"], find_texts(base, adapter), request)
        check_lengths(request, base, prompts.ids)
        work = GenerationWork(reply, request, base, stamp, adapter, prompts.ids, prompts.calls)
        self._switch.assign(work)
        return work

    # -- the main thread

    def _choose(self) -> list[GenerationWork]:
        """The request that waits longest, and others for the same model."""
        if not self._waiting:
            return []
        return [work for work in self._waiting if work.key == self._waiting[0].key]

    def _answer(self, group: list[GenerationWork]) -> None:
        try:
            self._switch.use(group[0]).answer(group, self)
        except VllmUnfit:
            pass  # transformers is next
        except Exception as error:
            if not self.must_end:  # else what it used was taken from it
                self._fail(group, error)
        for work in group:
            work.finish_if_done()
        with self._changed:  # those that wait for another model, or for room in a batch, come first now
            left = [work for work in self._waiting if work not in group and not work.is_over]
            self._waiting = [*left, *(work for work in group if not work.is_over)]
            self._switch.reassign(self._waiting)

    def _fail(self, group: list[GenerationWork], error: Exception) -> None:
        logger.error("Answers could not be generated", exc_info=error)
        if not isinstance(error, GenerationBusy | ModelUnusable):
            self._switch.forget()  # it may have left the model in an unknown state
        for work in group:
            work.reply.fail(error)

    def watch_arrivals(self) -> Callable[[], bool]:
        """A function that tells whether requests have come since this call."""
        known = {id(work) for work in self._waiting}
        return lambda: any(id(work) not in known for work in self._waiting)

    def take_more(self, key: Key, group: list[GenerationWork]) -> list[GenerationWork]:
        """Requests with this key that are not in the group; none once one with another key waits."""
        with self._changed:
            self._waiting = [work for work in self._waiting if not work.is_over]
            self._switch.reassign(self._waiting)
            if any(work.key != key for work in self._waiting):
                return []
            return [work for work in self._waiting if work not in group]

    def _is_beside_job(self) -> bool:
        return self._watch.sees_job and not self.must_end


def check_lengths(request: dict[str, Any], base: Path, prompts: list[list[int]]) -> None:
    """Settle `max_tokens`. Raises ContextTooLong if prompt and answer exceed the model's positions."""
    from sft.generation.room import find_positions

    positions, longest = find_positions(base), max(map(len, prompts))
    asked = request["max_tokens"]
    if longest >= positions or (asked is not None and longest + asked > positions):
        wanted = f" and max_tokens asks for {asked}" if asked is not None else ""
        raise ContextTooLong(
            f"This model's maximum context length is {positions} tokens. The prompt has {longest}{wanted}; shorten the "
            "prompt" + (" or lower max_tokens" if asked is not None else "")
        )
    request["max_tokens"] = asked if asked is not None else min(positions - longest, request["default_max_tokens"])
