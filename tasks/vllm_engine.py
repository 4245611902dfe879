"""`VllmEngine`: answers by a vLLM server, which this process starts and alone can reach."""

import asyncio
import logging
import os
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

from jobs.answer_engine import find_vllm
from jobs.errors import GenerationBusy, GenerationFailed
from jobs.settings import Settings
from sft.generation.vllm_limits import VllmUnfit
from tasks.engines import Desk, Tokenizers
from tasks.generation_room import check_room
from tasks.generation_work import GenerationWork
from tasks.vllm_server import NAME, VllmServer, build_command, make_environment, read_error

if TYPE_CHECKING:
    from sft.generation.sequences import Sequence

logger = logging.getLogger(__name__)

LOG = Path("logs", "vllm.log")  # in the state folder; of the server that was started last
CACHE = "vllm"
CACHE_SHARE = 0.3  # at most, of the free memory of a machine without a GPU, for keys and values
CACHE_BYTES = (2**28, 2**32)  # at least, if the share allows it, and at most
CACHED_SEQUENCES = 16  # as long as they may be
GPU_SHARE = 0.9  # of the free memory of the GPU
SERVER_BYTES = 2 * 2**30  # main memory of its processes, without the model
MOST_NAMES = 32  # of adapters that the server knows; those in its memory are fewer
LOOK_SECONDS = 0.05


class VllmEngine:
    """A server for one base model, and its adapters, which are added while it runs.

    Nothing is answered while a job runs, also on a CPU: its threads would take the job's cores.

    Args:
        folder: a private one, for sockets.
        must_end: whether this process is to end.
        refuse: told of an adapter that the server does not take, and why.
    """

    def __init__(
        self,
        folder: Path,
        tokenizers: Tokenizers,
        must_end: Callable[[], bool],
        refuse: Callable[[GenerationWork, object, str], None],
    ) -> None:
        self._server = VllmServer(folder / "vllm.sock", folder / "vllm.log")
        self._folder = folder
        self._tokenizers = tokenizers
        self._must_end = must_end
        self._loaded: tuple[Path, str] | None = None  # `GenerationWork.model`
        self._rank = 0
        self._names: OrderedDict[Path, str] = OrderedDict()
        self._named = 0
        self.is_exclusive = False
        self.refuse = refuse

    @property
    def is_started(self) -> bool:
        """Whether a server runs."""
        return self._loaded is not None

    def fits(self, work: GenerationWork) -> bool:
        """Whether the server has this base model, and room for adapters of this rank."""
        return self._loaded == work.model and work.rank <= self._rank and not self._server.has_ended()

    def start(self, work: GenerationWork) -> None:
        """Start a server.

        Raises:
            GenerationBusy: a job runs, the memory is in use, or this process is to end.
            VllmUnfit: vLLM can't serve this model here.
        """
        settings = Settings.model_validate(work.request["settings"])
        vllm = find_vllm(settings)
        if vllm is None:
            raise VllmUnfit("the command vllm is gone")
        dtype, more, environment = settle_options(work, settings)
        log = settings.home / LOG
        command = [*build_command(vllm, work.base, self._folder / "vllm.sock", dtype, work.rank), *more]
        self._server = VllmServer(self._folder / "vllm.sock", log)
        self.is_exclusive = True
        logger.info("Starting vLLM for %s to generate answers; its log is %s", work.request["base"], log)
        cache = settings.home / CACHE
        self._server.start(command, make_environment(dict(os.environ), vllm, self._folder, cache) | environment)
        try:
            if not self._server.wait_until_ready(self._must_end, settings.generation_seconds):
                raise GenerationBusy("A job needs the machine; try again later")
        except BaseException:
            self.end()
            raise
        self._loaded, self._rank = work.model, work.rank

    def answer(self, group: list[GenerationWork], desk: Desk) -> None:
        """Answer these requests and those for the same base model that come meanwhile, until none is left.

        `group` gets those that come, and loses those that have ended. What vLLM could not answer is neither ended nor
        failed.
        """
        asyncio.run(_Round(self, self._server, self._tokenizers, desk).run(group))

    async def name(self, client: httpx.AsyncClient, adapter: Path | None) -> str:
        """The server's name of a model; adds the adapter if the server does not have it. Raises VllmUnfit."""
        if adapter is None:
            return NAME
        if adapter not in self._names:
            self._named += 1
            name = f"adapter{self._named}"
            response = await client.post("/v1/load_lora_adapter", json={"lora_name": name, "lora_path": str(adapter)})
            if not response.is_success:
                raise VllmUnfit(f"vLLM does not take it: {read_error(response)}")
            self._names[adapter] = name
            if len(self._names) > MOST_NAMES:
                gone = self._names.popitem(last=False)[1]
                await client.post("/v1/unload_lora_adapter", json={"lora_name": gone})
        self._names.move_to_end(adapter)
        return self._names[adapter]

    def kill(self) -> None:
        """End the server at once; from any thread."""
        self._server.kill()

    def end(self) -> None:
        """End the server."""
        self._server.end()
        self._loaded, self._rank, self.is_exclusive = None, 0, False
        self._names.clear()


class ServerBroken(Exception):
    """The server reports that its engine has failed, and is to be replaced."""


class _Round:
    """One call of `VllmEngine.answer`: a request to the server for each sequence."""

    def __init__(self, engine: VllmEngine, server: VllmServer, tokenizers: Tokenizers, desk: Desk) -> None:
        self._engine = engine
        self._server = server
        self._tokenizers = tokenizers
        self._desk = desk
        self._running: dict[asyncio.Task[None], GenerationWork] = {}
        self._adding = asyncio.Lock()

    async def run(self, group: list[GenerationWork]) -> None:
        """Answer a group of requests with the same key, to which others are added and from which those that end go."""
        key = group[0].key
        async with self._server.connect() as client:
            try:
                for work in group:
                    self._begin(client, work)
                while self._running and not self._desk.must_end:
                    done, _ = await asyncio.wait(
                        self._running, timeout=LOOK_SECONDS, return_when=asyncio.FIRST_COMPLETED
                    )
                    for task in done:
                        self._settle(task)
                    self._drop_cancelled()
                    group[:] = [work for work in group if not work.is_over]
                    for work in self._desk.take_more(key, group):
                        group.append(work)
                        self._begin(client, work)
            finally:
                left = [*self._running]
                for task in left:
                    task.cancel()
                await asyncio.gather(*left, return_exceptions=True)

    def _begin(self, client: httpx.AsyncClient, work: GenerationWork) -> None:
        for sequence in self._tokenizers.list_sequences(work):
            self._running[asyncio.create_task(self._generate(client, work, sequence))] = work

    def _settle(self, task: "asyncio.Task[None]") -> None:
        """End a request with its last sequence, or with its first error. Raises if the server can't go on."""
        work = self._running.pop(task)
        error = None if task.cancelled() else task.exception()
        if isinstance(error, httpx.TransportError | ServerBroken):
            raise GenerationFailed("vLLM ended before the answer did; try again") from error
        if error is not None:
            for other in [other for other, its in self._running.items() if its is work]:
                other.cancel()
            if isinstance(error, VllmUnfit):
                self._engine.refuse(work, work.adapter, str(error))
            else:
                logger.error("An answer could not be generated", exc_info=error)
                work.reply.fail(error)
        work.finish_if_done()

    def _drop_cancelled(self) -> None:
        for task, work in self._running.items():
            if work.reply.is_gone:
                task.cancel()

    async def _generate(self, client: httpx.AsyncClient, work: GenerationWork, sequence: "Sequence") -> None:
        from sft.generation.vllm_wire import StreamError, build_request, read_line

        length = len(sequence.ids) + sequence.tokens_left
        if length > self._server.positions:
            raise GenerationBusy(f"An answer of {length} tokens with its prompt does not fit into the free memory now")
        async with self._adding:
            name = await self._engine.name(client, work.adapter)
        most = sequence.sampling.logprobs
        async with client.stream("POST", "/v1/completions", json=build_request(sequence, name)) as response:
            if not response.is_success:
                await response.aread()
                kind = ServerBroken if response.is_server_error else GenerationFailed
                raise kind(f"vLLM refuses the request: {read_error(response)}")
            async for line in response.aiter_lines():
                try:
                    found = [*read_line(line, most)]
                except StreamError as error:
                    raise ServerBroken(str(error)) from error
                for token, report in found:
                    sequence.take(token, report)
                    if sequence.is_finished or sequence.is_cancelled():
                        return
        raise ServerBroken("a stream ended before the answer")


def settle_options(work: GenerationWork, settings: Settings) -> tuple[str, list[str], dict[str, str]]:
    """The dtype, and the options and variables that depend on the machine.

    Raises:
        GenerationBusy: a job runs, or too little memory is free.
    """
    import psutil

    from sft.config import SFTConfig
    from sft.generation.room import measure_weights
    from sft.models.loading import DTYPES
    from sft.models.weights import check_weights
    from sft.planning.gpus import inspect_gpu
    from sft.planning.machine import settle_precision

    config = SFTConfig(base_model=work.request["base"], dataset_name="none", dataset_format="chat")
    config = settle_precision(config, settings.home, settings.dtype)
    precision = "bf16" if config.mixed_precision == "auto" else config.mixed_precision
    check_weights(work.base, f"base_model {config.base_model}")
    item_bytes = 4 if precision == "none" else 2
    weights = measure_weights(work.base, item_bytes)
    gpu = inspect_gpu()
    cache = 0 if gpu else measure_cache(work.base, item_bytes, psutil.virtual_memory().available)
    check_room(SERVER_BYTES + weights + cache, is_exclusive=True)
    if gpu is None:
        return DTYPES[precision], ["--enforce-eager", f"--kv-cache-memory-bytes={cache}"], {}
    share = int(GPU_SHARE * 100 * gpu.free_bytes / gpu.total_bytes) / 100
    return DTYPES[precision], [f"--gpu-memory-utilization={share}"], {"CUDA_VISIBLE_DEVICES": gpu.uuid}


def measure_cache(base: Path, item_bytes: int, free_bytes: int) -> int:
    """Bytes of main memory for the cache of keys and values."""
    from transformers import AutoConfig

    from sft.generation.room import find_positions, measure_token

    token_bytes = measure_token(AutoConfig.from_pretrained(base), item_bytes)
    wanted = CACHED_SEQUENCES * find_positions(base) * token_bytes
    return min(max(wanted, CACHE_BYTES[0]), CACHE_BYTES[1], int(CACHE_SHARE * free_bytes))
