"""`sft_job_manager`: the SFT API from Python, with no API server running."""

from typing import Any

from api.sft_routes import config_view, job_view
from jobs.door import Door
from jobs.settings import Settings
from jobs.spec import JobSpec
from sft.config import SFTConfig


class SFTJobManager:
    """Jobs from Python. Synchronous; the first call brings the local stack up and it stays up.

    Unknown ids raise ValueError("Job X not found") or ValueError("Config X not found").
    """

    def __init__(self, settings: Settings | None = None) -> None:
        self._door = Door(settings)

    def create_job(self, config: SFTConfig) -> str:
        """Make a job that waits as `pending` until it is started; returns its id."""
        return str(self._door.open().create(JobSpec.build(config=config)).id)

    def start_job(self, job_id: str) -> None:
        """Start a job made by `create_job`; once, however often it is called."""
        self._door.open().start(job_id)

    def stop_job(self, job_id: str) -> None:
        """Stop a job in whatever state it is."""
        self._door.open().cancel(job_id)

    def get_job_status(self, job_id: str) -> dict[str, Any]:
        """The job as `GET /api/sft/jobs/{job_id}` shows it."""
        return job_view(self._door.open().get(job_id))

    def list_jobs(self) -> list[dict[str, Any]]:
        """Every job, newest first."""
        return [job_view(job) for job in self._door.open().list_jobs()]

    def save_config(self, name: str, config: dict[str, Any]) -> str:
        """Keep a configuration, whole or partial; returns its id."""
        return str(self._door.open().save_config(name, config).config_id)

    def get_config(self, config_id: str) -> dict[str, Any]:
        """A saved configuration: `name` and `config`."""
        return config_view(self._door.open().get_config(config_id))

    def list_configs(self) -> list[dict[str, Any]]:
        """Every saved configuration, oldest first."""
        return [config_view(saved) for saved in self._door.open().list_configs()]


sft_job_manager = SFTJobManager()
