"""Trains the adapter."""

import atexit
import gc
import logging
from typing import TYPE_CHECKING, Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.journal import Journal

if TYPE_CHECKING:
    from sft.devices.launcher import DistributedSession
    from sft.training.session import TrainingSession

logger = logging.getLogger(__name__)


@task(name="Train", task_run_name="Train", cache_policy=NO_CACHE)
def train(session: "TrainingSession | DistributedSession", journal: Journal) -> dict[str, Any]:
    """Train for the configured steps and write progress to the journal. Runs on the flow's main thread."""
    # Without this, destroying torch's objects at exit keeps the process and its slot busy for 2.4 s.
    atexit.register(gc.freeze)
    journal.enter("training")
    summary = session.train()
    logger.info("Trained %s steps at %.0f tokens/s", summary["steps"], summary["tokens_per_second"])
    return summary
