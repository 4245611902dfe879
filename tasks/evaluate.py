"""Measures the loss on the held-out rows."""

import logging
from typing import TYPE_CHECKING, Any, Literal

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.journal import Journal

if TYPE_CHECKING:
    from sft.devices.launcher import DistributedSession
    from sft.training.session import TrainingSession

logger = logging.getLogger(__name__)


@task(name="Evaluate", task_run_name="Evaluate {what}", cache_policy=NO_CACHE)
def evaluate(
    session: "TrainingSession | DistributedSession", journal: Journal, what: Literal["base model", "adapter"], step: int
) -> dict[str, Any]:
    """Held-out loss of the model as it was at `step` 0 or is now: `eval_loss`, mean nats per supervised token."""
    journal.enter("evaluating")
    metrics = session.evaluate_start() if step == 0 else session.evaluate()
    # Without held-out rows there is no value. The epoch is the Trainer's present one, wrong for the start.
    shown = {name: value for name, value in metrics.items() if value is not None and name != "epoch"}
    journal.log_metrics(shown, step)
    logger.info("Eval loss of the %s: %s", what, metrics.get("eval_loss"))
    return metrics
