"""`TransformersEngine`: answers by transformers and PEFT in this process, in batches."""

import gc
import logging
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.errors import GenerationBusy
from jobs.settings import Settings
from sft.config import SFTConfig
from sft.imports import without_collecting
from tasks.engines import Desk, Tokenizers
from tasks.generation_room import Breaks, check_room
from tasks.generation_work import GenerationWork

if TYPE_CHECKING:
    from sft.generation.adapted_model import AdaptedModel

logger = logging.getLogger(__name__)

MOST_SEQUENCES = 16  # in a batch
CACHE_SHARE = 0.3  # of the free memory, for the keys and values of a batch


class TransformersEngine:
    """A base model, and its adapters, which are swapped without loading it again.

    Args:
        is_beside_job: whether a job runs that the computing gives way to.
    """

    def __init__(self, tokenizers: Tokenizers, is_beside_job: Callable[[], bool]) -> None:
        self._tokenizers = tokenizers
        self._is_beside_job = is_beside_job
        self._breaks = Breaks(is_beside_job)
        self._model: AdaptedModel | None = None
        self._loaded: tuple[Path, str] | None = None  # `GenerationWork.model`
        self._threads = 0
        self.is_exclusive = False

    @property
    def is_started(self) -> bool:
        """Whether a base model is loaded."""
        return self._model is not None

    def fits(self, work: GenerationWork) -> bool:
        """Whether its base model is loaded."""
        return self._loaded == work.model

    def start(self, work: GenerationWork) -> None:
        """Load the base model."""
        _import_libraries()
        import torch

        from sft.generation.adapted_model import AdaptedModel
        from sft.generation.room import OVERHEAD_BYTES, measure_weights
        from sft.models.loading import DTYPES, load_model
        from sft.models.weights import check_weights
        from sft.planning.machine import settle_precision

        settings = Settings.model_validate(work.request["settings"])
        config = SFTConfig(base_model=work.request["base"], dataset_name="none", dataset_format="chat")
        config = settle_precision(config, settings.home, settings.dtype)
        has_gpu = torch.cuda.is_available()
        check_weights(work.base, f"base_model {config.base_model}")
        precision = "bf16" if config.mixed_precision == "auto" else config.mixed_precision
        item_bytes = getattr(torch, DTYPES[precision]).itemsize
        check_room(OVERHEAD_BYTES + measure_weights(work.base, item_bytes), has_gpu)
        self.is_exclusive = has_gpu
        logger.info("Loading %s to generate answers", config.base_model)
        self._threads = self._threads or torch.get_num_threads()
        self._model = AdaptedModel(load_model(work.base, config), self._give_way)
        self._loaded = work.model

    def answer(self, group: list[GenerationWork], desk: Desk) -> None:
        """Run one batch."""
        from sft.generation.batches import run_batch

        assert self._model is not None  # noqa: S101 - it was loaded
        chosen: list[Any] = []
        room = self._find_room(group)
        for work in group:
            chosen += self._tokenizers.list_sequences(work)[: room - len(chosen)]
        has_news = desk.watch_arrivals()
        self._breaks.start()
        pad = self._tokenizers.find(group[0]).pad_token_id
        with self._model.using(group[0].adapter) as model:
            run_batch(model, chosen, pad if isinstance(pad, int) else 0, has_news, lambda: desk.must_end)

    def end(self) -> None:
        """Free the memory."""
        self._model, self._loaded = None, None
        gc.collect()
        if self.is_exclusive:
            import torch

            torch.cuda.empty_cache()

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
        free = torch.cuda.mem_get_info()[0] if self.is_exclusive else psutil.virtual_memory().available
        fitting = int(CACHE_SHARE * free / (measure_token(model.config, model.dtype.itemsize) * length))
        if fitting < 1:
            raise GenerationBusy(f"An answer of {length} tokens with its prompt does not fit into the free memory now")
        return min(fitting, MOST_SEQUENCES)


@cache
def _import_libraries() -> None:
    """Once, before any model: what is frozen with the libraries is never looked at again."""
    with without_collecting():
        import sft.generation.adapted_model
        import sft.generation.batches  # noqa: F401
