"""Collects warnings of transformers, PEFT and TRL while a model is loaded, to report them with a job's warnings."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

LIBRARIES = ("transformers", "peft", "trl", "accelerate")
SHOWN_CHARACTERS = 300
# Tuneyard reports these in its own sentences: `sft.models.weight_names` (the first three),
# `sft.models.companions`, `sft.training.embeddings`, `sft.chat.templates`, `sft.kernels.packing` (attention run
# by document), `sft.training.arguments`.
COVERED = (
    "LOAD REPORT",
    "will NOT tie",
    "This checkpoint seem corrupted",
    "generation config",
    "generation flags",
    "tokenizer has new",
    "has new PAD/BOS/EOS tokens",
    "Padding-free",
    "padding-free",
    "gradient checkpointing",
    "gradient_checkpointing",
    "use_cache=True",
)


class _Collector(logging.Handler):
    def __init__(self, heard: list[str]) -> None:
        super().__init__(logging.WARNING)
        self.heard = heard

    def emit(self, record: logging.LogRecord) -> None:
        _add(self.heard, record.name, record.getMessage())


@contextmanager
def collecting_warnings() -> Iterator[list[str]]:
    """Yields a list that collects the libraries' warnings in the block, each one once.

    They are still logged; a warning that a filter turns into an error still raises.
    """
    heard: list[str] = []
    collector = _Collector(heard)
    loggers = [logging.getLogger(name) for name in LIBRARIES]
    for logger in loggers:
        logger.addHandler(collector)
    show = warnings.showwarning

    def tell(message: Warning | str, category: type[Warning], filename: str, *place: object) -> None:
        library = next((name for name in LIBRARIES if f"/{name}/" in filename), None)
        if library and not issubclass(category, FutureWarning | DeprecationWarning):
            _add(heard, library, str(message))
        show(message, category, filename, *place)  # type: ignore[arg-type]  # line number, file and text as they come

    try:
        with warnings.catch_warnings():
            warnings.showwarning = tell  # type: ignore[assignment]
            yield heard
    finally:
        for logger in loggers:
            logger.removeHandler(collector)


def _add(heard: list[str], name: str, text: str) -> None:
    plain = " ".join(text.split())
    if not plain or any(part in plain for part in COVERED):
        return
    shown = plain if len(plain) <= SHOWN_CHARACTERS else plain[: SHOWN_CHARACTERS - 3] + "..."
    sentence = f"{name.partition('.')[0]} warned while the model was loaded: {shown}"
    if sentence not in heard:
        heard.append(sentence)
