"""Checks a saved adapter in a fresh process before it is registered: does it give the model that was trained?"""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import psutil

from jobs.storage.events import count_deaths
from sft.chat.steady import VARYING
from sft.config import SFTConfig
from sft.data.mixing import AnyRows, MixedData
from sft.errors import InvalidDataset, ModelUnusable, ResourceLimit
from sft.generation.room import OVERHEAD_BYTES, measure_weights
from sft.models.model_texts import read_object
from sft.serving.process import Request, ask
from sft.serving.samples import CheckedRow, choose_rows, read_samples
from sft.serving.verdict import Verdict, judge, skip
from tasks.dataset_mix import AnyDataset, list_versions
from tasks.journal import Journal
from tasks.limits import FREE_SHARE, reading_input
from tuneyard_wire.serving_check import ServingCheck

if TYPE_CHECKING:
    from datasets import Dataset

    from sft.devices.launcher import DistributedSession
    from sft.training.session import TrainingSession

logger = logging.getLogger(__name__)

CHECKING = "checking"  # the phase
MOST_DEATHS = 2  # of the job's processes that were killed while they checked
ITEM_BYTES = {"float32": 4}


class _Rows(NamedTuple):
    """Prepared rows of one dataset, and the file with what they were prepared from."""

    rows: "Dataset"
    file: Path
    config: SFTConfig


def find_obstacle(session: "TrainingSession | DistributedSession", journal: Journal) -> str | None:
    """Why the check is not made; None if it can be tried."""
    if not journal.settings.serving_check_seconds:
        return "TUNEYARD_SERVING_CHECK_SECONDS is 0"
    if session.config.shard_model:
        return "the base model is split over several devices (shard_model)"
    if session.config.use_qlora or _is_quantized(session.model_path):
        return "the base model is quantized"
    with journal.attempt.writing() as connection:
        deaths = count_deaths(connection, journal.job_id, CHECKING)
    if deaths >= min(MOST_DEATHS, max(journal.settings.max_attempts - 1, 1)):
        return f"{deaths} processes were killed while checking, as when memory runs out"
    return None


def check_serving(
    session: "TrainingSession | DistributedSession",
    journal: Journal,
    dataset: AnyDataset,
    rows: AnyRows,
    adapter_dir: Path,
    obstacle: str | None,
) -> Verdict:
    """Check what will be registered, by transformers and PEFT alone; the session's model is freed for that.

    The job's phase is `CHECKING` before, and `registering` after it.

    Args:
        obstacle: the result of `find_obstacle`.

    Raises:
        ResultUnusable: the files can't be loaded at all.
    """
    if obstacle:
        return skip(obstacle)
    verdict = _check(session, journal, dataset, rows, adapter_dir)
    level = logging.WARNING if verdict.findings else logging.INFO
    logger.log(level, "Serving check %s: %s", verdict.status, describe(verdict))
    journal.enter("registering")
    return verdict


def describe(verdict: Verdict) -> str:
    """All of a verdict in a line."""
    return "; ".join([*verdict.findings, *ServingCheck.model_validate(verdict._asdict()).list_facts()])


def _is_quantized(model: Path) -> bool:
    stored = read_object(model / "config.json")
    text = stored.get("text_config")
    return bool(stored.get("quantization_config") or (isinstance(text, dict) and text.get("quantization_config")))


def _check(
    session: "TrainingSession | DistributedSession",
    journal: Journal,
    dataset: AnyDataset,
    rows: AnyRows,
    adapter_dir: Path,
) -> Verdict:
    source = _find_rows(session.config, dataset, rows)
    chosen = choose_rows(source.rows, session.config.max_seq_length)
    if not len(chosen):
        return skip("the rows that were looked at are all as long as cutoff_len (max_seq_length)")
    samples, reasons = _read_samples(journal, chosen, source, dataset)
    compares_prompts = not any(cause in warning for cause in VARYING.values() for warning in rows.warnings)
    if not compares_prompts:
        reasons.append("prompts are not compared, as the chat template writes the date or draws at random")
    measured = session.measure_rows(chosen)
    session.free_model()
    is_adapter = session.config.use_lora
    dtype = measured["dtype"]
    folder = session.model_path if is_adapter else adapter_dir
    needed = measure_weights(folder, ITEM_BYTES.get(dtype, 2) if is_adapter else 4) + OVERHEAD_BYTES
    room = _measure_room(measured["device"])
    if needed > room:
        return skip(f"loading it again takes {needed / 1e9:.1f} GB, and {room / 1e9:.1f} GB are left")
    request = Request(
        adapter=adapter_dir,
        base=session.model_path if is_adapter else None,
        auto_class=_name_class(session.model_path),
        dtype=dtype,
        device=measured["device"],
        samples=samples,
        compares_prompts=compares_prompts,
        memory_bytes=room if measured["device"] == "cpu" else None,
        seconds=journal.settings.serving_check_seconds,
    )
    try:
        replies = ask(request)
    except OSError as error:
        return skip(f"no process can be started ({error})")
    return judge(request, replies, measured["loss"], reasons)


def _find_rows(config: SFTConfig, dataset: AnyDataset, rows: AnyRows) -> _Rows:
    """Held-out rows, of several datasets those of the first that has any; rows that were trained on without any."""
    versions = [*list_versions(config, dataset)]
    parts: list[tuple[Any, bool]] = [(rows, True)]
    if isinstance(rows, MixedData):
        parts = [(part.rows, part.weight is not None) for part in rows.parts]
    for (part, is_trained_on), (own_config, version) in zip(parts, versions, strict=True):
        if not is_trained_on:
            return _Rows(part.load_train(), version.train_file, own_config)
        if (held_out := part.load_eval()) is not None:
            return _Rows(held_out, version.eval_file or version.train_file, own_config)
    return _Rows(parts[0][0].load_train(), versions[0][1].train_file, versions[0][0])


def _read_samples(
    journal: Journal, chosen: "Dataset", source: _Rows, dataset: AnyDataset
) -> tuple[list[CheckedRow], list[str]]:
    """The rows with their prompts, or no rows and the reason."""
    try:
        with reading_input(journal.settings, str(dataset.reference)):
            samples = read_samples(chosen, source.file, source.config)
    except (InvalidDataset, ModelUnusable, ResourceLimit, OSError) as error:
        return [], [f"rows are not compared, as they can't be read again: {error}"]
    if len(samples) < len(chosen):
        return [], [f"rows are not compared, as {source.file.name} has changed since it was read"]
    return samples, []


def _measure_room(device: str) -> int:
    """Bytes that the process may take."""
    if device == "cpu":
        return int(FREE_SHARE * psutil.virtual_memory().available)
    import torch

    return int(torch.cuda.mem_get_info(device)[0])


def _name_class(model: Path) -> str:
    from sft.models.model_class import find_model_class
    from sft.models.model_settings import read_settings

    return str(find_model_class(read_settings(model, f"base_model {model.name}"), model).__name__)
