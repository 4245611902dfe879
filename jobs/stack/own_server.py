"""Sets up a Prefect server that is not the local stack's: `tuneyard deploy`."""

import os

import httpx
from sqlalchemy.exc import SQLAlchemyError

from jobs.engine.credentials import find_password
from jobs.network.failures import describe_failure
from jobs.project import code_environment
from jobs.settings import Settings
from jobs.stack import deployments
from jobs.stack.job_templates import TemplateOptions
from jobs.stack.work_pools import PoolResult, set_up_pool
from jobs.storage.connections import describe_database_failure
from jobs.storage.schema import ensure_current
from jobs.storage.tables import engine_for
from sft.errors import StackError

PYTHON = "python"  # the workers' own; their hosts are not known here
NO_OPTIONS = TemplateOptions()


def deploy_to_own_server(
    settings: Settings,
    concurrency_limit: int | None,
    kind: str | None = None,
    options: TemplateOptions = NO_OPTIONS,
    resets_template: bool = False,
) -> PoolResult:
    """Create or update work pool, deployments and the database's schema; arguments as `set_up_pool`.

    Without TUNEYARD_DATABASE_URL the database is left to the service's processes.

    Raises:
        StackError: no server is configured, it can't be reached, it refuses what it gets, or as `set_up_pool`.
    """
    url = settings.prefect_api_url
    if url is None:
        raise StackError("set PREFECT_API_URL to your Prefect server's API; `tuneyard up` sets up the local one")
    _migrate(settings)
    try:
        result = set_up_pool(settings, concurrency_limit, kind, options, resets_template)
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
        raise StackError(f"Prefect at {url} can't be reached ({describe_failure(error)})") from error
    return result


def _migrate(settings: Settings) -> None:
    if settings.database_url is None:
        return
    try:
        ensure_current(engine_for(settings.database_url))
    except SQLAlchemyError as error:
        reason = describe_database_failure(error)
        raise StackError(f"the database of TUNEYARD_DATABASE_URL can't be used ({reason})") from error
