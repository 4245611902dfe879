"""`EngineSwitch`: which engine answers a request, and the one that is loaded."""

import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.answer_engine import choose_engine, find_vllm
from jobs.errors import GenerationFailed
from jobs.settings import Settings
from sft.generation.vllm_limits import USUAL_RANK, VllmUnfit, find_rank
from tasks.engines import Tokenizers
from tasks.generation_work import GenerationWork
from tasks.transformers_engine import TransformersEngine
from tasks.vllm_engine import VllmEngine

if TYPE_CHECKING:
    from tasks.engines import Engine

logger = logging.getLogger(__name__)


class EngineSwitch:
    """One engine at a time; what vLLM can't answer, transformers answers.

    Args:
        folder: a private one, for sockets.
        is_beside_job: whether a job runs that transformers gives way to.
        must_end: whether this process is to end.
    """

    def __init__(self, folder: Path, is_beside_job: Callable[[], bool], must_end: Callable[[], bool]) -> None:
        self._tokenizers = Tokenizers()
        self._transformers = TransformersEngine(self._tokenizers, is_beside_job)
        self._vllm = VllmEngine(folder, self._tokenizers, must_end, self._note)
        self._unfit: set[object] = set()  # base models and folders of adapters that vLLM can't answer for
        self._has_gpu: bool | None = None  # asked for when it matters
        self.current: Engine = self._transformers

    def assign(self, work: GenerationWork) -> None:
        """Choose the engine of a request. Raises GenerationFailed if vLLM is set and missing."""
        from sft.planning.gpus import inspect_gpu

        settings = Settings.model_validate(work.request["settings"])
        vllm = find_vllm(settings)
        if self._has_gpu is None and vllm is not None and settings.generation_engine == "auto":
            self._has_gpu = inspect_gpu() is not None
        work.engine = choose_engine(settings, vllm, bool(self._has_gpu))
        if work.engine == "vllm":
            try:
                work.rank = find_rank(work.adapter) if work.adapter else USUAL_RANK
            except VllmUnfit as error:
                self._note(work, work.adapter, str(error))
            self.reassign([work])

    def reassign(self, works: Iterable[GenerationWork]) -> None:
        """Leave to transformers what vLLM was found to be unable to answer."""
        for work in works:
            if work.engine == "vllm" and (work.model in self._unfit or work.adapter in self._unfit):
                work.engine = "transformers"

    def use(self, work: GenerationWork) -> "Engine":
        """The engine of this request, with its model.

        Raises:
            VllmUnfit: vLLM can't serve the base model; transformers will.
            GenerationFailed: so it is, and TUNEYARD_GENERATION_ENGINE is vllm.
        """
        engine: Engine = self._vllm if work.engine == "vllm" else self._transformers
        if engine is not self.current or not engine.fits(work):
            self.forget()
            self.current = engine
            try:
                engine.start(work)
            except VllmUnfit as error:
                if work.request["settings"]["generation_engine"] == "vllm":
                    raise GenerationFailed(f"{error} (TUNEYARD_GENERATION_ENGINE is vllm)") from error
                self._note(work, work.model, str(error))
                raise
        return engine

    def forget(self) -> None:
        """Free the memory."""
        self._tokenizers.clear()
        self.current.end()

    def kill(self) -> None:
        """End the processes of an engine at once; from any thread."""
        self._vllm.kill()

    def _note(self, work: GenerationWork, what: object, reason: str) -> None:
        if what not in self._unfit:
            self._unfit.add(what)
            logger.warning("%s is answered by transformers, not by vLLM: %s", work.request["model"], reason)
