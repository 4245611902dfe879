"""Sets up a Prefect server that is not the local stack's: `tuneyard deploy`."""

import os
from typing import Any

import httpx

from jobs.engine.credentials import find_password
from jobs.project import code_environment
from jobs.settings import Settings
from jobs.stack import deployments
from sft.errors import StackError

PYTHON = "python"  # the workers' own; their hosts are not known here


def deploy_to_own_server(settings: Settings, concurrency_limit: int | None) -> dict[str, Any]:
    """Create work pool and deployments, or bring them up to date; returns the pool as Prefect has it.

    Raises:
        StackError: no server is configured, it can't be reached, or it refuses what it gets.
    """
    url = settings.prefect_api_url
    if url is None:
        raise StackError("set PREFECT_API_URL to your Prefect server's API; `tuneyard up` sets up the local one")
    try:
        pool = deployments.ensure_work_pool(settings, settings.work_pool, concurrency_limit)
        folder = settings.home / "deployments"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        (folder / "deployed").unlink(missing_ok=True)  # says what another server may have
        password = find_password(settings)
        server = {"PREFECT_API_URL": url} | ({"PREFECT_API_AUTH_STRING": password} if password else {})
        deployments.deploy(settings, settings.work_pool, folder, code_environment(os.environ) | server, PYTHON)
    except httpx.HTTPStatusError as error:
        status = error.response.status_code
        remedy = "; set PREFECT_API_AUTH_STRING or PREFECT_API_KEY" if status in (401, 403) else ""
        raise StackError(f"Prefect at {url} responds with {status}{remedy}") from error
    except httpx.HTTPError as error:
        raise StackError(f"Prefect at {url} can't be reached ({type(error).__name__})") from error
    return pool
