"""What the checks know of the workers: a file that this machine lacks may be on a worker elsewhere."""

from dataclasses import dataclass
from pathlib import Path

from jobs.settings import Settings
from jobs.stack.endpoints import Endpoints
from jobs.stack.gpus import share_gpus
from jobs.stack.parts import count_workers


@dataclass(frozen=True)
class CheckContext:
    """The settings, and whether the workers run on this machine."""

    settings: Settings
    workers_are_here: bool
    gpus: tuple[str, ...] = ()  # of the workers, if they are here

    @property
    def gpus_per_job(self) -> int:
        """The largest number of GPUs that a worker has for a job, if the workers are here."""
        workers = count_workers(self.settings, [*self.gpus])
        return max(len(share_gpus([*self.gpus], number, workers)) for number in range(workers))

    def sees(self, folder: Path) -> bool:
        """Whether files that are missing in a folder are missing for the workers too."""
        return self.workers_are_here or folder.is_dir()

    @property
    def hint(self) -> str:
        """A sentence to add to a not-found message if workers are on other machines; else empty."""
        if self.workers_are_here:
            return ""
        return ". Not found on the API host; if it is only on a worker, run `tuneyard plan --here` there"


def find_context(settings: Settings) -> CheckContext:
    """Read the state folder, where a local stack records what it runs."""
    endpoints = Endpoints.read(settings.home)
    if endpoints is None or "prefect_api_url" not in endpoints.local:
        return CheckContext(settings, False)
    address = endpoints.addresses["prefect_api_url"]
    if settings.prefect_api_url not in (None, address):
        return CheckContext(settings, False)
    return CheckContext(settings, True, endpoints.gpus)
