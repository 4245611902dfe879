"""`Answering`: the requests of the generation process (`tasks.generation`), and the model that answers them.

Threads: one for each connection, which finds the files and has the prompt written (`tasks.prompt_process`); the main
thread loads models and generates.
"""

import gc
import logging
import socket
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.errors import ContextTooLong, GenerationBusy
from jobs.settings import Settings
from sft.config import SFTConfig
from sft.errors import ModelUnusable
from sft.files.stamps import stamp_folder
from tasks.fetched_adapters import FetchedAdapters
from tasks.generation_room import Breaks, JobWatch, check_room
from tasks.generation_sequences import make_sequences
from tasks.generation_work import GenerationWork, ReplyStream, read_request
from tasks.model_store import locate_model
from tasks.prompt_process import PromptProcesses, Prompts

if TYPE_CHECKING:
    from sft.generation.adapted_model import AdaptedModel

logger = logging.getLogger(__name__)

MOST_SEQUENCES = 16  # in a batch
MOST_TOKENIZERS = 12  # in memory; the one read first is removed for another
CACHE_SHARE = 0.3  # of the free memory, for the keys and values of a batch
LEAST_BYTES = 2**30  # for the libraries alone
BUSY = "A job needs the memory or the GPU that answers were generated with; try again later"


class Answering:
    """The requests, and the model that answers them; one base model and its adapters at a time."""

    def __init__(self, folder: Path) -> None:
        self._adapters = FetchedAdapters(folder)
        self._prompts = PromptProcesses()
        self._waiting: list[GenerationWork] = []
        self._changed = threading.Condition()
        self._files = threading.Lock()
        self._model: AdaptedModel | None = None
        self._loaded: tuple[Path, str] | None = None  # the base model's folder and stamp
        self._tokenizers: dict[Path, Any] = {}
        self._idle_seconds = 60.0
        self._connections = 0
        self.must_end = False
        self._watch = JobWatch(lambda: self._has_gpu, self._yield)
        self._breaks = Breaks(self._is_beside_job)
        self._threads = 0
        self._has_gpu = False

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
        """End the processes that write prompts."""
        self._prompts.close()

    def _yield(self) -> None:
        with self._changed:
            self.must_end = True
            self._changed.notify_all()

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
        if self._model is None:
            check_room(LEAST_BYTES, has_gpu=False)
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
        return GenerationWork(reply, request, base, stamp, adapter, prompts.ids, prompts.calls)

    # -- the main thread

    def _choose(self) -> list[GenerationWork]:
        """The request that waits longest, and others for the same model."""
        if not self._waiting:
            return []
        return [work for work in self._waiting if work.key == self._waiting[0].key]

    def _answer(self, group: list[GenerationWork]) -> None:
        from sft.generation.batches import run_batch

        try:
            self._load(group[0])
            assert self._model is not None  # noqa: S101 - it was loaded
            chosen: list[Any] = []
            room = self._find_room(group)
            for work in group:
                if not work.sequences:
                    work.sequences = make_sequences(work, self._tokenizer(work))
                chosen += [one for one in work.sequences if not one.is_finished][: room - len(chosen)]
            known = {id(work) for work in self._waiting}
            self._breaks.start()
            with self._model.using(group[0].adapter) as model:
                run_batch(model, chosen, self._pad(group[0]), lambda: self._has_news(known), lambda: self.must_end)
        except Exception as error:
            logger.exception("Answers could not be generated")
            self._forget_after(error)
            for work in group:
                work.reply.fail(error)
        for work in group:
            if work.sequences and all(one.is_finished for one in work.sequences) and not work.is_over:
                work.finish()
        with self._changed:  # those that wait for another model, or for room in a batch, come first now
            left = [work for work in self._waiting if work not in group and not work.is_over]
            self._waiting = [*left, *(work for work in group if not work.is_over)]

    def _has_news(self, known: set[int]) -> bool:
        return any(id(work) not in known for work in self._waiting)

    def _load(self, work: GenerationWork) -> None:
        """Load the base model if another one, or none, is loaded."""
        if self._loaded == (work.base, work.stamp):
            return
        import torch

        from sft.generation.adapted_model import AdaptedModel
        from sft.generation.room import OVERHEAD_BYTES, measure_weights
        from sft.models.loading import DTYPES, load_model
        from sft.models.weights import check_weights
        from sft.planning.machine import settle_precision

        self._forget()
        settings = Settings.model_validate(work.request["settings"])
        config = SFTConfig(base_model=work.request["base"], dataset_name="none", dataset_format="chat")
        config = settle_precision(config, settings.home, settings.dtype)
        has_gpu = torch.cuda.is_available()
        check_weights(work.base, f"base_model {config.base_model}")
        precision = "bf16" if config.mixed_precision == "auto" else config.mixed_precision
        item_bytes = getattr(torch, DTYPES[precision]).itemsize
        check_room(OVERHEAD_BYTES + measure_weights(work.base, item_bytes), has_gpu)
        self._has_gpu = has_gpu
        logger.info("Loading %s to generate answers", config.base_model)
        self._threads = self._threads or torch.get_num_threads()
        self._model = AdaptedModel(load_model(work.base, config), self._give_way)
        self._loaded = work.base, work.stamp

    def _is_beside_job(self) -> bool:
        return self._watch.sees_job and not self.must_end

    def _give_way(self) -> None:
        """Beside a job, compute with one thread and breaks: several would wait for one another and for the job's."""
        import torch

        threads = 1 if self._is_beside_job() else self._threads
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        self._breaks.take()

    def _find_room(self, group: list[GenerationWork]) -> int:
        """How many sequences of the longest of the group fit into a batch."""
        import psutil
        import torch

        from sft.generation.room import measure_token

        assert self._model is not None  # noqa: S101 - it was loaded
        model = self._model.model
        longest = max(len(ids) for work in group for ids in work.prompts)
        length = longest + max(work.request["max_tokens"] for work in group)
        free = torch.cuda.mem_get_info()[0] if self._has_gpu else psutil.virtual_memory().available
        fitting = int(CACHE_SHARE * free / (measure_token(model.config, model.dtype.itemsize) * length))
        if fitting < 1:
            raise GenerationBusy(f"An answer of {length} tokens with its prompt does not fit into the free memory now")
        return min(fitting, MOST_SEQUENCES)

    def _tokenizer(self, work: GenerationWork) -> Any:
        """The tokenizer of the adapter or the base; the process that writes prompts has read it before."""
        from sft.models.loading import load_tokenizer

        folder = find_texts(work.base, work.adapter)
        if folder not in self._tokenizers:
            self._tokenizers[folder] = load_tokenizer(folder)
        found = self._tokenizers[folder]
        while len(self._tokenizers) > MOST_TOKENIZERS:
            del self._tokenizers[next(iter(self._tokenizers))]
        return found

    def _pad(self, work: GenerationWork) -> int:
        found = self._tokenizer(work).pad_token_id
        return found if isinstance(found, int) else 0

    def _forget_after(self, error: Exception) -> None:
        """Free the memory after a failure that may have left the model in an unknown state."""
        if not isinstance(error, GenerationBusy | ModelUnusable):
            self._forget()

    def _forget(self) -> None:
        self._model, self._loaded = None, None
        self._tokenizers.clear()
        gc.collect()
        if self._has_gpu:
            import torch

            torch.cuda.empty_cache()


def find_texts(base: Path, adapter: Path | None) -> Path:
    """The folder with tokenizer and chat template: the adapter's own, if it has any."""
    return adapter if adapter and (adapter / "tokenizer_config.json").is_file() else base


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
