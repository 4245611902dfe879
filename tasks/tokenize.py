"""Turns a dataset version into token ids and labels, once for the same content."""

import logging
from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE

from sft.config import SFTConfig
from sft.tokenization import PreparedData, prepare
from tasks.dataset import DatasetVersion
from tasks.journal import Journal

logger = logging.getLogger(__name__)

CACHE_FOLDER = "tokenized"


@task(name="Tokenize", task_run_name="Tokenize", cache_policy=NO_CACHE)
def tokenize(config: SFTConfig, dataset: DatasetVersion, model: Path, journal: Journal) -> PreparedData:
    """The rows as token ids with labels on what is supervised; says what was dropped and cut."""
    journal.enter("tokenizing")
    data = prepare(config, model, dataset.train_file, journal.settings.home / CACHE_FOLDER, dataset.eval_file)
    logger.info("%s", "Tokenized before; taken from the cache" if data.was_cached else "Tokenized")
    for split, counts in data.stats.items():
        if counts:
            logger.info(
                "%s: %d of %d rows used, %d dropped (nothing to learn), %d cut at %d tokens; %d tokens, %d supervised",
                split,
                counts["used"],
                counts["rows"],
                counts["dropped"],
                counts["truncated"],
                config.max_seq_length,
                counts["tokens"],
                counts["supervised_tokens"],
            )
    return data
