"""Tokenizes a dataset version, cached by content."""

import logging
from pathlib import Path

from jobs.settings import Settings
from sft.config import SFTConfig
from sft.data.tokenization import PreparedData, prepare
from tasks.dataset_version import DatasetVersion
from tasks.journal import Journal
from tasks.limits import reading_input

logger = logging.getLogger(__name__)

CACHE_FOLDER = "tokenized"
REASONS_SHOWN = 5  # of each split; the manifest has a hundred


def tokenize_dataset(config: SFTConfig, dataset: DatasetVersion, model: Path, journal: Journal) -> PreparedData:
    """Tokenize the rows into ids and labels, and log which rows were left out or truncated."""
    journal.enter("tokenizing")
    data = prepare_dataset(config, model, dataset, journal.settings)
    logger.info("%s", "Using cached tokens" if data.was_cached else "Tokenized")
    report_rows(data, config.max_seq_length)
    return data


def prepare_dataset(config: SFTConfig, model: Path, dataset: DatasetVersion, settings: Settings) -> PreparedData:
    """Tokenize the dataset's rows and add the advice about its files."""
    with reading_input(settings, config.dataset_name):
        data = prepare(config, model, dataset.train_file, settings.home / CACHE_FOLDER, dataset.eval_file)
    data.advice += dataset.advise(config.dataset_split)
    return data


def report_rows(data: PreparedData, max_seq_length: int) -> None:
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
    for warning in data.warnings:
        logger.warning("%s", warning)
