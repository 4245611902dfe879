"""Where a job's workers are, as far as this process knows: only what it can see is it able to miss."""

from dataclasses import dataclass
from pathlib import Path

from jobs.settings import Settings
from jobs.stack.endpoints import Endpoints
from jobs.stack.parts import count_workers, share_gpus


@dataclass(frozen=True)
class Surroundings:
    """What a check may go by."""

    settings: Settings
    workers_are_here: bool
    gpus: tuple[str, ...] = ()  # of this machine's workers, where they are here

    @property
    def gpus_a_job(self) -> int:
        """The most GPUs that a worker has for a job, where workers are here."""
        workers = count_workers(self.settings, [*self.gpus])
        return max(len(share_gpus([*self.gpus], number, workers)) for number in range(workers))

    def sees(self, folder: Path) -> bool:
        """Whether what is missing in this folder is missing for the workers too."""
        return self.workers_are_here or folder.is_dir()

    @property
    def hint(self) -> str:
        """What to add to something that was not found: it may be elsewhere."""
        if self.workers_are_here:
            return ""
        return ". Not found on the API host; if it is only on a worker, run `tuneyard plan --here` there"


def find_surroundings(settings: Settings) -> Surroundings:
    """Read from the state folder, where a local stack says what it runs."""
    endpoints = Endpoints.read(settings.home)
    if endpoints is None or "prefect_api_url" not in endpoints.local:
        return Surroundings(settings, False)
    address = endpoints.addresses["prefect_api_url"]
    if settings.prefect_api_url not in (None, address):
        return Surroundings(settings, False)
    return Surroundings(settings, True, endpoints.gpus)
