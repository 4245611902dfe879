"""Resolve references to jobs, configurations and deliveries: an id, an id prefix, or a name."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING
from uuid import UUID

from tuneyard_cli.problems import UsageProblem
from tuneyard_wire.id_prefixes import is_prefix
from tuneyard_wire.one_line import escape

if TYPE_CHECKING:
    from tuneyard_client import Tuneyard

MAX_SHOWN = 10
CHECKPOINT = ":ckpt-step-"  # between a job's id and the step


class AmbiguousReference(UsageProblem):
    """A reference matches several objects."""

    code = "ambiguous"


def find_job_id(client: "Tuneyard", reference: str) -> str:
    """Resolve an id or id prefix to a job's id. A complete id is returned without a request.

    Raises:
        AmbiguousReference: several job ids begin with it.
        NotFound: no job id does.
    """
    if is_complete(reference) or not is_prefix(reference):
        return reference  # the service rejects what can't be a prefix
    found = {
        job.job_id: f"{job.status:<9}  {job.config.get('model_name') or ''}"
        for job in client.jobs(id_prefix=reference, limit=MAX_SHOWN + 1)
    }
    return choose(reference, "jobs", found) or _not_found("job_not_found", f"No job id begins with {reference}")


def complete_model(client: "Tuneyard", reference: str) -> str:
    """The name of a model, in which the job of a checkpoint has its whole id. Raises as `find_job_id` does."""
    job, mark, step = reference.partition(CHECKPOINT)
    return find_job_id(client, job) + mark + step if mark else reference


def find_config_id(client: "Tuneyard", reference: str) -> str:
    """Resolve an id, id prefix or name to a saved configuration's id.

    Raises:
        AmbiguousReference: several configurations match.
        NotFound: none matches.
    """
    if is_complete(reference):
        return reference
    found = {saved.config_id: saved.name for saved in client.configs.list(name=reference)}
    if is_prefix(reference):
        found |= {saved.config_id: saved.name for saved in client.configs.list(id_prefix=reference)}
    detail = f"No saved configuration has the name or id prefix {reference}; see `tuneyard configs list`"
    return choose(reference, "configurations", found) or _not_found("config_not_found", detail)


def find_delivery_id(client: "Tuneyard", job_id: str, reference: str) -> str:
    """Resolve an id or id prefix to a delivery of a job. Raises AmbiguousReference or NotFound."""
    if is_complete(reference):
        return reference
    found = choose_by_prefix(reference, "deliveries", {one.delivery_id: one.event for one in client.deliveries(job_id)})
    return found or _not_found("delivery_not_found", f"No delivery id of job {job_id} begins with {reference}")


def choose_by_prefix(prefix: str, kind: str, known: Mapping[str, str]) -> str | None:
    """Find the only id with this prefix; None if there is none. Raises AmbiguousReference."""
    matches = {one: label for one, label in known.items() if is_prefix(prefix) and one.startswith(prefix.lower())}
    return choose(prefix, kind, matches)


def choose(reference: str, kind: str, found: Mapping[str, str]) -> str | None:
    """Return the only id in `found`, None if it is empty. Raises AmbiguousReference, which lists the ids."""
    if len(found) <= 1:
        return next(iter(found), None)
    lines = [f"  {one}  {escape(label)}" for one, label in [*found.items()][:MAX_SHOWN]]
    count = str(len(found)) if len(found) <= MAX_SHOWN else f"more than {MAX_SHOWN}"
    raise AmbiguousReference("\n".join([f"{reference} matches {count} {kind}; give more of the id:", *lines]))


def is_complete(reference: str) -> bool:
    """Whether a reference is a complete id."""
    try:
        return str(UUID(reference)) == reference.lower()
    except ValueError:
        return False


def _not_found(code: str, detail: str) -> str:
    """Raise the error that a 404 of the service with this code raises."""
    from tuneyard_client.errors import NotFound

    raise NotFound(detail, HTTPStatus.NOT_FOUND, code)
