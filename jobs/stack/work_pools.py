"""Creates and updates a work pool of your own Prefect server: its type, limit and job template."""

from dataclasses import dataclass
from typing import Any

import httpx

from jobs.engine.credentials import open_client
from jobs.settings import Settings
from jobs.stack.job_templates import Template, TemplateOptions, is_ours, make_template
from sft.errors import StackError

PROCESS = "process"
KINDS = (PROCESS, "docker", "kubernetes")


@dataclass(frozen=True)
class PoolResult:
    """A work pool as stored in Prefect, and whether its job template was kept because somebody changed it."""

    pool: dict[str, Any]
    is_template_kept: bool = False


def set_up_pool(
    settings: Settings,
    concurrency_limit: int | None,
    kind: str | None,
    options: TemplateOptions,
    resets_template: bool = False,
) -> PoolResult:
    """Create or update the work pool of the settings with its job template.

    Values that people have set for the template's variables are kept, as is a template whose fixed part was changed.

    Args:
        concurrency_limit: unchanged if None.
        kind: the pool's type; if None, that of the existing pool, else `process`.
        resets_template: replace the template with all values and changes.

    Raises:
        StackError: the pool is of another type, its jobs have no image, or it does not use an option.
        httpx.HTTPError: Prefect refuses or can't be reached.
    """
    name = settings.work_pool
    with open_client(settings) as client:
        found = _read(client, name)
        if found is not None and kind not in (None, found["type"]):
            raise StackError(
                f"work pool {name} is of type {found['type']}, not {kind}; delete it, or name another in "
                "TUNEYARD_WORK_POOL"
            )
        kind = kind or (found["type"] if found else PROCESS)
        if unused := options.unused(kind):
            raise StackError(f"a {kind} work pool has no use for {', '.join(f'--{name}' for name in unused)}")
        stored = {} if found is None or resets_template else found["base_job_template"]
        template, is_kept = _update_template(kind, stored, options)
        changes: dict[str, Any] = {} if concurrency_limit is None else {"concurrency_limit": concurrency_limit}
        if template is not None:
            changes["base_job_template"] = template
        if found is None:
            client.post("/work_pools/", json={"name": name, "type": kind, **changes}).raise_for_status()
        elif changes:
            _change(client, name, changes)
        return PoolResult(_read(client, name) or {}, is_kept)


def _update_template(kind: str, stored: Template, options: TemplateOptions) -> tuple[Template | None, bool]:
    """The template to store, None for a pool whose worker brings it; and whether the stored fixed part is kept."""
    fresh = make_template(kind)
    if fresh is None:
        return None, False
    configuration = stored.get("job_configuration", {})
    is_kept = bool(configuration) and not is_ours(configuration)
    if is_kept:
        fresh["job_configuration"] = configuration
    properties = fresh["variables"]["properties"]
    for name, schema in stored.get("variables", {}).get("properties", {}).items():
        if name not in properties:
            properties[name] = schema
        elif "default" in schema:
            properties[name] = properties[name] | {"default": schema["default"]}
    for name, value in options.defaults(kind).items():
        properties.setdefault(name, {})["default"] = value
    if not properties["image"].get("default"):
        raise StackError(f"the jobs of a {kind} work pool need an image; name it with --image")
    return fresh, is_kept


def _read(client: httpx.Client, name: str) -> dict[str, Any] | None:
    response = client.get(f"/work_pools/{name}")
    if response.status_code == httpx.codes.NOT_FOUND:
        return None
    found: dict[str, Any] = response.raise_for_status().json()
    return found


def _change(client: httpx.Client, name: str, changes: dict[str, Any]) -> None:
    client.patch(f"/work_pools/{name}", json=changes).raise_for_status()
