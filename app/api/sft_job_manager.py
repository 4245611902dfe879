"""`sft_job_manager`: the SFT API from Python, with no API server running."""

import logging
import threading
from collections.abc import Sequence
from typing import Any, Self

from api.sft_routes import config_view, describe_job, version_view
from app.callbacks import start_callbacks
from jobs.service.access import StackAccess
from jobs.settings import Settings
from jobs.spec import JobSpec
from sft.callbacks import SFTCallback
from sft.config import SFTConfig
from tuneyard_wire.response import Response

logger = logging.getLogger(__name__)

Plain = dict[str, Any]


class SFTJobManager:
    """Jobs from Python. Synchronous; the first call starts the local stack, which keeps running.

    Unknown ids raise ValueError("Job X not found") or ValueError("Config X not found"). `close`, or use in a `with`
    statement, ends its connections.
    """

    def __init__(self, settings: Settings | None = None) -> None:
        self._access = StackAccess(settings)
        self._closing = threading.Event()
        self._followers: list[threading.Thread] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections. Jobs continue, callbacks are no longer called. A later call connects again.

        Waits for a running callback, except one that calls this itself.
        """
        self._closing.set()
        for thread in self._followers:
            if thread is not threading.current_thread():
                thread.join()
        self._closing, self._followers = threading.Event(), []
        self._access.close()

    def create_job(self, config: SFTConfig, callbacks: Sequence[SFTCallback] | None = None) -> str:
        """Create a job, which is `pending` until it is started; returns its id.

        Problems that would fail it, such as a missing model, are logged as warnings.

        The callbacks are called in this process, on a thread of their own, with the job's id and config as `trainer`.
        """
        service = self._access.open()
        spec = JobSpec.build(config=config)
        for finding in service.preflight.run(spec):
            logger.warning("%s", finding.message({}))
        job = service.create(spec)
        if callbacks:
            self._followers.append(start_callbacks(service, job, config, callbacks, self._closing))
        return str(job.id)

    def start_job(self, job_id: str) -> None:
        """Start a job made by `create_job`; further calls have no effect."""
        self._access.open().start(job_id)

    def stop_job(self, job_id: str) -> None:
        """Stop a job in any state."""
        self._access.open().stop(job_id)

    def get_job_status(self, job_id: str) -> Plain:
        """The job as `GET /api/sft/jobs/{job_id}` shows it."""
        return describe_job(self._access.open().get(job_id))

    def list_jobs(self) -> list[Plain]:
        """Every job, newest first."""
        return [describe_job(job) for job in self._access.open().list_jobs().jobs]

    def save_config(self, name: str, config: dict[str, Any]) -> str:
        """Save a configuration, complete or partial; returns its id."""
        return str(self._access.open().configs.save(name, config).config_id)

    def get_config(self, config_id: str) -> Plain:
        """A saved configuration: `name` and `config`."""
        return _plain(config_view(self._access.open().configs.get(config_id)))

    def list_configs(self) -> list[Plain]:
        """Every saved configuration, oldest first."""
        return [_plain(config_view(saved)) for saved in self._access.open().configs.read_all()]

    def update_config(self, config_id: str, config: dict[str, Any], name: str | None = None) -> Plain:
        """Save a new version of a configuration; the name stays if unset."""
        return _plain(config_view(self._access.open().configs.update(config_id, name, config)))

    def delete_config(self, config_id: str) -> None:
        """Delete a configuration. Jobs that were made from it still name it."""
        self._access.open().configs.delete(config_id)

    def list_config_versions(self, config_id: str) -> list[Plain]:
        """Every version of a configuration, the first one first."""
        return [_plain(version_view(version)) for version in self._access.open().configs.versions(config_id)]


def _plain(response: Response) -> Plain:
    """A response as the JSON values that the service sends."""
    return response.model_dump(mode="json")


sft_job_manager = SFTJobManager()
