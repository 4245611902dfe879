"""Where a job's files are."""

from pathlib import Path
from uuid import UUID

from jobs.settings import Settings
from sft.config import SFTConfig


def job_folder(settings: Settings, config: SFTConfig, job_id: UUID | str) -> Path:
    """The job's own folder; nothing is made. Raises InvalidConfig when it would lie outside every allowed root."""
    return settings.output_folder(config.output_dir) / str(job_id)


def checkpoint_folder(settings: Settings, config: SFTConfig, job_id: UUID | str) -> Path:
    """Where the job's `checkpoint-N` folders go. Raises InvalidConfig as `job_folder` does."""
    if config.checkpoint_dir:
        return settings.output_folder(config.checkpoint_dir) / str(job_id)
    return job_folder(settings, config, job_id) / "checkpoints"
