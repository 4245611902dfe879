"""Submits a job for an adapter whose dataset has changed since it was trained, with the same configuration."""

import logging
from contextlib import closing
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Cancelled

from jobs.network.deadlines import allow
from jobs.retrain_spec import RetrainSpec
from jobs.service.job_service import JobService
from jobs.service.retraining import find_owner, submit_retraining
from jobs.settings import Settings
from jobs.storage.connections import PATIENCE_SECONDS
from jobs.vocabulary import RETRAIN_FLOW_NAME
from tasks.journal import show_log_lines
from tasks.retraining import build_job, find_adapter, look_at_data
from tasks.tracking import JOB_TAG

logger = logging.getLogger("flows.retrain")  # Prefect loads this file under another name


@flow(name=RETRAIN_FLOW_NAME, validate_parameters=False)  # `RetrainSpec.build` does, with our own messages
def retrain(adapter_name: str, dataset_version: str | None = None, force: bool = False) -> dict[str, Any] | State[Any]:
    """Compare an adapter's training data with the current dataset; submit a job if they differ.

    A run that submits nothing ends in a state that says why: Unchanged, AlreadyRetraining, FailedBefore,
    CancelledBefore or CompletedBefore, each of Prefect's type Cancelled.

    Args:
        adapter_name: An adapter in the registry.
        dataset_version: Branch, tag or commit of its dataset to look at; the main branch of the registry if unset.
        force: Submit a job though nothing has changed, or such a job has ended before.
    """
    show_log_lines()
    wanted = RetrainSpec.build(adapter_name=adapter_name, dataset_version=dataset_version, force=force)
    settings = Settings()
    adapter = find_adapter(settings, wanted.adapter_name)
    dataset = look_at_data(adapter, wanted, settings)
    if dataset.md5 == adapter.tags.get("dataset_md5") and not wanted.force:
        return _end("Unchanged", f"{dataset.name} has not changed since version {adapter.version} of {adapter.name}")
    spec = build_job(adapter, dataset, str(flow_run.get_id()), settings)
    with allow(PATIENCE_SECONDS), closing(JobService(settings)) as service:  # no client waits for the response
        owner = find_owner(service, adapter.tags.get(JOB_TAG, ""))
        made = submit_retraining(service, spec, wanted.force, owner)
    if not made.is_new:
        return _end(made.state_name, made.reason)
    logger.info("%s has changed: job %s retrains %s", dataset.name, made.job_id, adapter.name)
    return {"adapter_name": adapter.name, "job_id": str(made.job_id)}


def _end(name: str, message: str) -> State[Any]:
    logger.info("%s: %s", name, message)
    return Cancelled(name=name, message=message)
