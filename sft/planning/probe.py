"""Times a real batch through a few layers of the model with the real trainer.

seconds per token = (t(FEW) + (layers - FEW) * (t(MORE) - t(FEW)) / (MORE - FEW)) / tokens

The head is timed with a part of its rows, as that of a large vocabulary takes longer than many layers.
"""

import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from sft.config import SFTConfig
from sft.data.mixing import AnyRows
from sft.data.tokenization import PreparedData
from sft.files.temporary_folders import temporary_folder
from sft.planning.shape import ModelShape
from sft.planning.tokens import IGNORED

if TYPE_CHECKING:
    from datasets import Dataset

    from sft.training.layout import Layout

FEW, MORE = 1, 3  # layers; one layer's time is a share of the difference
REPEATS = 2  # timings, of which the fastest counts, as other load can only slow one down
ENOUGH_SECONDS = 0.5  # no repeat after a timing this long
MAX_SECONDS = 0.15  # expected time of a pass; of a longer batch fewer rows are probed
ENOUGH_TOKENS = 192  # enough for matrix products to reach a whole batch's speed
HEAD_POSITIONS = 128  # positions that the head is timed on, at most
FEW_POSITIONS = 4  # supervised positions when only the layers are timed
FEW_ROWS, MORE_ROWS = 4096, 16384  # rows of the head's matrix, at most, when the layers and when the head is timed
SCORE_ALL = ("trl", "logits")  # layouts whose head runs on every position on a CPU


class Probe(NamedTuple):
    """The measurements. Seconds cover forward and backward; the head's are per supervised token."""

    tokens: int
    layout: "Layout"
    few_seconds: float  # for these tokens through FEW layers
    layer_seconds: float  # for these tokens through one more layer
    head_seconds: float
    optimizer_seconds: float  # for one optimizer step, per trained weight

    def predict_layers(self, layers: int) -> float:
        """Seconds per token through all layers."""
        return (self.few_seconds + (layers - FEW) * self.layer_seconds) / self.tokens


class ProbeRows(PreparedData):
    """A prepared dataset reduced to a few training rows."""

    def __init__(self, whole: AnyRows, indices: list[int]) -> None:
        self.whole = whole
        self.indices = indices
        self.stats, self.longest, self.largest_ids = whole.stats, whole.longest, whole.largest_ids

    def load_train(self) -> "Dataset":
        """The selected rows."""
        return self.whole.load_train().select(self.indices)

    def load_eval(self) -> None:
        """None: no held-out rows."""


def run_probe(config: SFTConfig, prepared: AnyRows, model_path: Path, dtype: str, indices: list[int]) -> Probe:
    """Time the rows at `indices` as one batch. Loads only `MORE` layers of the model, embeddings and head."""
    from sft.models.loading import quiet_transformers
    from sft.training.session import TrainingSession

    with temporary_folder("tuneyard-plan-") as folder, quiet_transformers(), _without_comments():
        shorten_model(model_path, folder / "model", MORE)
        session = TrainingSession(
            _simplify(config, dtype, len(indices)), ProbeRows(prepared, indices), folder / "model", folder / "out"
        )
        trainer = session.trainer
        batch = next(iter(trainer.get_train_dataloader()))
        tokens = int(batch["input_ids"].numel())  # B * T, padding included
        with _cutting_head(trainer, FEW_ROWS) as rows:
            body, least = _supervise(batch, trainer.layout, FEW_POSITIONS, rows)
            more = _time(lambda: _run_backward(trainer, body), is_warm=False)
            trainer.create_optimizer()
            trainable = sum(parameter.numel() for parameter in trainer.model.parameters() if parameter.requires_grad)
            optimizer_seconds = _time(trainer.optimizer.step)
            _cut_layers(trainer.model, FEW)
            few = _time(lambda: _run_backward(trainer, body))
        with _cutting_head(trainer, MORE_ROWS) as rows:
            learned, most = _supervise(batch, trainer.layout, HEAD_POSITIONS, rows)
            with_head = few if most == least else _time(lambda: _run_backward(trainer, learned))
        each = max(with_head - few, 0.0) / max(most - least, 1)  # seconds of a logit
        vocabulary = _find_head(trainer)[1]
        scores_all = trainer.layout in SCORE_ALL
        return Probe(
            tokens=tokens,
            layout=trainer.layout,
            few_seconds=few + each * (tokens * vocabulary - least) if scores_all else few,
            layer_seconds=max(more - few, 0.0) / (MORE - FEW),
            head_seconds=0.0 if scores_all else each * vocabulary,
            optimizer_seconds=optimizer_seconds / trainable,
        )


def fits_probe(shape: ModelShape, bytes_each: int, free_bytes: int) -> bool:
    """Whether loading a few layers takes only a small part of the free memory."""
    outer = shape.parameters - shape.matrix_parameters
    needed = (outer + MORE * shape.matrix_parameters / shape.layers) * bytes_each  # embeddings, head and MORE layers
    return shape.layers > MORE and 4 * needed < free_bytes and needed < 2**31


def choose_rows(shape: ModelShape, lengths: list[int], flops_per_second: float) -> list[int]:
    """Choose rows of a batch, given their lengths, for a pass of about MAX_SECONDS; at least one."""
    per_token = 4 * MORE * shape.matrix_parameters / shape.layers  # FLOPs: forward 2, input gradients 2 a weight
    wanted = max(MAX_SECONDS * flops_per_second / per_token, ENOUGH_TOKENS)
    kept: list[int] = []
    tokens = 0
    for place in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        if tokens + lengths[place] <= 1.5 * wanted:
            kept.append(place)
            tokens += lengths[place]
    return kept or [min(range(len(lengths)), key=lengths.__getitem__)]


def shorten_model(model_path: Path, folder: Path, layers: int) -> None:
    """Make a folder with the same model but fewer layers; the weight files are links."""
    folder.mkdir()
    for file in model_path.iterdir():
        if file.name != "config.json":
            (folder / file.name).symlink_to(file.resolve())
    settings = json.loads((model_path / "config.json").read_text(encoding="utf-8"))
    _shorten_settings(settings, layers)
    (folder / "config.json").write_text(json.dumps(settings), encoding="utf-8")


def _shorten_settings(settings: dict[str, Any], layers: int) -> None:
    """Set the number of layers, under any of its names, and cut lists that have an entry per layer."""
    for nested in [value for value in settings.values() if isinstance(value, dict)]:
        _shorten_settings(nested, layers)
    name = next((name for name in ("num_hidden_layers", "n_layer", "n_layers", "num_layers") if name in settings), None)
    if name is None:
        return
    was = settings[name]
    for key, value in settings.items():
        if isinstance(value, list) and len(value) == was:
            settings[key] = value[:layers]
    settings[name] = layers


def _simplify(config: SFTConfig, dtype: str, rows: int) -> SFTConfig:
    """The same configuration per batch, without evaluation, checkpoints and other side work."""
    from sft.models.loading import name_precision

    changes = {
        "mixed_precision": name_precision(dtype),
        "batch_size": rows,
        "gradient_accumulation_steps": 1,
        "num_devices": 1,
        "shard_model": False,
        "max_batch_tokens": None,
        "packing": False,
        "gradient_checkpointing": False,
        "adapter_path": None,
        "eval_steps": None,
        "early_stopping_patience": None,
        "max_steps": 1,
    }
    return config.model_copy(update=changes)


def keep_labels(labels: torch.Tensor, count: int) -> torch.Tensor:
    """Keep the first `count` supervised labels and set the others to -100."""
    learned = (labels != IGNORED).flatten().cumsum(0).reshape(labels.shape)  # (B, T): supervised labels up to here
    return labels.masked_fill(learned > count, IGNORED)


def _find_head(trainer: Any) -> tuple[Any, int]:
    """The base model, and the number of tokens that its head has logits for."""
    from accelerate.utils import is_peft_model

    model = trainer.model.get_base_model() if is_peft_model(trainer.model) else trainer.model
    table = model.get_input_embeddings() if trainer.layout == "logits" else model.get_output_embeddings()
    return model, int(table.weight.shape[0])


@contextmanager
def _cutting_head(trainer: Any, rows: int) -> Iterator[int]:
    """Keep so many rows of the head, whose time grows with them, and tell how many it has; `logits` runs it whole."""
    from sft.adapting.shortened import small_head

    with nullcontext() if trainer.layout == "logits" else small_head(_find_head(trainer)[0], rows):
        yield _find_head(trainer)[1]


def _supervise(batch: dict[str, Any], layout: "Layout", count: int, vocabulary: int) -> tuple[dict[str, Any], int]:
    """The batch with only its first `count` supervised tokens, all among the first of the vocabulary.

    Also the number of logits that the head computes for it.
    """
    from sft.kernels.loss import POSITIONS, find_supervised_positions

    labels = keep_labels(batch["labels"], count)
    labels = labels.where(labels == IGNORED, labels % vocabulary)
    positions = find_supervised_positions(labels)
    scored = labels.numel() if layout in SCORE_ALL else len(positions)
    return batch | {"labels": labels, POSITIONS: positions}, scored * vocabulary


def _run_backward(trainer: Any, batch: dict[str, Any]) -> None:
    trainer.current_gradient_accumulation_steps = 1
    trainer.training_step(trainer.model, dict(batch))


def _time(run: Callable[[], Any], is_warm: bool = True) -> float:
    """Seconds of the fastest run; unless `is_warm`, the first one warms up the kernels, and counts if it takes long."""
    seconds = [] if is_warm else [_clock(run)]
    if seconds and seconds[0] < ENOUGH_SECONDS:
        seconds = []
    while len(seconds) < REPEATS and sum(seconds) < ENOUGH_SECONDS:
        seconds.append(_clock(run))
    return min(seconds)


def _clock(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _cut_layers(model: nn.Module, layers: int) -> None:
    """Keep only the first layers of the model."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.ModuleList) and len(child) == MORE:
                setattr(module, name, child[:layers])
    settings = getattr(model, "config", None)
    if settings is not None:
        settings.get_text_config().num_hidden_layers = layers


@contextmanager
def _without_comments() -> Iterator[None]:
    """Silence transformers' list of the weights that the shorter model does not use, and TRL's batch warnings."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
