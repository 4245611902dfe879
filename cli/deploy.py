"""`tuneyard deploy`: the work pool and the deployments on a Prefect server of your own."""

import shlex
from enum import StrEnum
from typing import Annotated, Any

import typer

from tuneyard_cli.output import print_json, print_line
from tuneyard_cli.service import JsonOption

PANEL = "The service on this machine"

commands = typer.Typer()


class PoolType(StrEnum):
    """What a job is started as."""

    PROCESS = "process"
    DOCKER = "docker"
    KUBERNETES = "kubernetes"


WORKERS = {  # how many jobs a worker may have, and where one is started
    PoolType.PROCESS: (1, "on each host, one for each job that may run there at once"),
    PoolType.DOCKER: (1, "on each Docker host, one for each share of its GPUs: CUDA_VISIBLE_DEVICES=0 and so on"),
    PoolType.KUBERNETES: (None, "one or two in the cluster; the pool's limit says how many jobs run"),
}


@commands.command(rich_help_panel=PANEL)
def deploy(
    limit: Annotated[
        int | None, typer.Option(min=1, help="Maximum number of jobs at once in the pool; unchanged if not given.")
    ] = None,
    pool_type: Annotated[
        PoolType | None, typer.Option(help="What jobs run as; an existing pool keeps its type. Default: process.")
    ] = None,
    image: Annotated[str | None, typer.Option(help="Image of a docker or kubernetes pool's jobs.")] = None,
    gpus: Annotated[int | None, typer.Option(min=0, help="GPUs of each pod. With Docker: 0, or the worker's.")] = None,
    namespace: Annotated[str | None, typer.Option(help="Namespace of the pods; `tuneyard` if not given.")] = None,
    reset_template: Annotated[
        bool, typer.Option("--reset-template", help="Replace the pool's job template with all values and changes.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Create the work pool (TUNEYARD_WORK_POOL) and the deployments on your own Prefect server (PREFECT_API_URL).

    With TUNEYARD_DATABASE_URL it migrates the schema too. Run it again after each update of Tuneyard. Schedules stay as
    they are, and so do values that were set in the pool's job template. The local stack has its own.
    """
    from jobs.settings import Settings
    from jobs.stack.job_templates import TemplateOptions
    from jobs.stack.own_server import deploy_to_own_server

    options = TemplateOptions(image=image, gpus=gpus, namespace=namespace)
    result = deploy_to_own_server(Settings(), limit, pool_type and pool_type.value, options, reset_template)
    worker, where = describe_worker(result.pool)
    name, kind, most = result.pool["name"], result.pool["type"], result.pool["concurrency_limit"]
    if as_json:
        shown = {"work_pool": name, "type": kind, "concurrency_limit": most, "worker": worker}
        print_json(shown | {"is_template_kept": result.is_template_kept})
        return
    print_line(f"Work pool {name} ({kind}, {f'{most} jobs at once' if most else 'no limit'}) has the deployments.")
    if result.is_template_kept:
        print_line("Its job template was changed by hand and is kept; --reset-template replaces it.")
    print_line(f"Worker     {worker}    ({where})")
    print_line("Watchdog   python -m jobs.watchdog    (on one host or more; one is active)")


def describe_worker(pool: dict[str, Any]) -> tuple[str, str]:
    """The command of a worker for this pool, and where to run it."""
    name, kind = pool["name"], pool["type"]
    limit, where = WORKERS.get(kind, (1, "on each host, one for each job that may run there at once"))
    words = ["prefect", "worker", "start", "--pool", name, "--type", kind]
    return shlex.join([*words, *(["--limit", str(limit)] if limit else [])]), where
