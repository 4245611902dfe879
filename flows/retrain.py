"""Has the data changed since an adapter was trained? Then a job with the same settings on the new data."""

import logging
from typing import Any, cast

from prefect import flow
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import run_deployment

from jobs.settings import Settings
from tasks.dataset import resolve_dataset
from tasks.journal import let_log_lines_through
from tasks.register import find_latest

logger = logging.getLogger("flows.retrain")  # Prefect loads this file under another name


@flow(name="retrain")
def retrain(adapter_name: str, dataset_version: str = "main") -> dict[str, Any]:
    """Compare the data an adapter was trained on with the dataset as it is now; submit a job if they differ.

    Args:
        adapter_name: An adapter in the registry.
        dataset_version: Branch, tag or commit of the adapter's dataset to look at.
    """
    let_log_lines_through()
    settings = Settings()
    adapter = find_latest(settings, adapter_name)
    if adapter is None:
        logger.info("No adapter named %s is registered yet; nothing to retrain", adapter_name)
        return {"adapter_name": adapter_name, "changed": False, "job_id": None}
    dataset = resolve_dataset(f"{adapter.tags['dataset']}@{dataset_version}", settings)
    if dataset.md5 == adapter.tags["dataset_md5"]:
        logger.info("%s has not changed since version %s of %s", dataset.name, adapter.version, adapter.name)
        return {"adapter_name": adapter_name, "changed": False, "job_id": None}
    spec = adapter.to_spec()
    config = spec.config.model_copy(update={"dataset_name": f"{dataset.name}@{dataset.commit}"})
    spec = spec.model_copy(update={"config": config, "adapter_name": adapter.name})
    run = run_deployment("finetune/sft", parameters=spec.to_parameters(), tags=spec.tags(), timeout=0, as_subflow=False)
    job = cast(FlowRun, run)
    logger.info("%s has changed: job %s retrains %s", dataset.name, job.id, adapter.name)
    return {"adapter_name": adapter_name, "changed": True, "job_id": str(job.id)}
