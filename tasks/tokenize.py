"""Tokenizes a dataset version, cached by content."""

import logging
import time
from collections.abc import Callable
from pathlib import Path

from jobs.settings import Settings
from sft.config import SFTConfig
from sft.data.mixing import AnyRows
from sft.data.tokenization import PreparedData, prepare, prepare_sample
from tasks.dataset_mix import AnyDataset, prepare_all
from tasks.dataset_version import DatasetVersion
from tasks.journal import Journal
from tasks.limits import reading_input

logger = logging.getLogger(__name__)

CACHE_FOLDER = "tokenized"
PHASE = "tokenizing"
PROGRESS_SECONDS = 10.0  # between two reports of progress
MOST_PLANNED_ROWS = 10_000  # a plan reads a sample of more
REASONS_SHOWN = 5  # of each split; the manifest has a hundred


class RowsProgress:
    """Reports how many rows are tokenized, every ten seconds: to the log, and in the job's phase by `show`."""

    def __init__(self, total: int, show: Callable[[str], None]) -> None:
        self.total = total
        self._show = show
        self._started_at = self._told_at = time.monotonic()
        self._before: int | None = None  # rows that an earlier attempt tokenized

    def __call__(self, rows: int) -> None:
        """Take note that so many rows are done."""
        self._before = rows if self._before is None else self._before
        now = time.monotonic()
        if now - self._told_at < PROGRESS_SECONDS:
            return
        self._told_at = now
        total = max(self.total, rows)
        speed = (rows - self._before) / (now - self._started_at)
        left = f", {(total - rows) / speed:.0f} s left" if speed else ""
        logger.info("Tokenized %d of %d rows (%d%%), %.0f rows/s%s", rows, total, 100 * rows // total, speed, left)
        self._show(f"{PHASE} ({100 * rows // total}%)")


def tokenize_dataset(config: SFTConfig, dataset: AnyDataset, model: Path, journal: Journal) -> AnyRows:
    """Tokenize the rows into ids and labels, and log which rows were left out or truncated."""
    journal.enter(PHASE)

    def prepare_one(own_config: SFTConfig, version: DatasetVersion) -> PreparedData:
        progress = RowsProgress(version.rows, lambda phase: journal.write(phase=phase))
        with reading_input(journal.settings, _name(config, version)):
            files = (version.train_file, journal.settings.home / CACHE_FOLDER, version.eval_file)
            return prepare(own_config, model, *files, on_rows=progress)

    data = prepare_all(config, dataset, prepare_one)
    logger.info("%s", "Using cached tokens" if data.was_cached else "Tokenized")
    report_rows(data, config.max_seq_length)
    return data


def prepare_for_plan(config: SFTConfig, model: Path, dataset: AnyDataset, settings: Settings) -> AnyRows:
    """Tokenize the rows, of a large dataset a sample, and add the advice about its files."""
    cache = settings.home / CACHE_FOLDER

    def prepare_one(own_config: SFTConfig, version: DatasetVersion) -> PreparedData:
        with reading_input(settings, _name(config, version)):
            if version.rows > MOST_PLANNED_ROWS:
                return prepare_sample(own_config, model, version.train_file, cache, version.eval_file, version.rows)
            return prepare(own_config, model, version.train_file, cache, version.eval_file)

    return prepare_all(config, dataset, prepare_one, is_plan=True)


def _name(config: SFTConfig, version: DatasetVersion) -> str:
    return str(version.reference) if config.is_mixed else config.dataset_names


def report_rows(data: AnyRows, max_seq_length: int) -> None:
    """Log the counts of each split, and warnings about the first invalid rows and other findings."""
    for split, counts in data.stats.items():
        if counts:
            logger.info(
                "%s: %d of %d rows used, %d dropped (nothing to learn), %d invalid, %d left out (beyond %d tokens), "
                "%d cut; %d tokens, %d supervised",
                split,
                *(counts[name] for name in ("used", "rows", "dropped", "invalid", "too_long")),
                max_seq_length,
                *(counts[name] for name in ("truncated", "tokens", "supervised_tokens")),
            )
        for number, reason in data.notes[split]["invalid"][:REASONS_SHOWN]:  # type: ignore[misc]  # these are pairs
            logger.warning("%s row %s left out: %s", split, number, reason)
    for part in data.describe_parts():
        if part["train"]:
            logger.info(
                "%s (weight %g): an epoch takes %d rows of %d; %d are repeated, %d left out",
                *(part[name] for name in ("name", "weight", "taken")),
                *(part["train"]["used"], part["repeated"], part["left_out"]),
            )
    for warning in data.warnings:
        logger.warning("%s", warning)
