"""Jobs, configurations and deliveries as users name them: by id, by an id's first characters, or by name."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING
from uuid import UUID

from tuneyard_cli.problems import UsageProblem
from tuneyard_wire.id_prefixes import is_prefix
from tuneyard_wire.one_line import escape

if TYPE_CHECKING:
    from tuneyard_client import Tuneyard

SHOWN = 10


class AmbiguousReference(UsageProblem):
    """What was typed fits several."""

    code = "ambiguous"


def find_job_id(client: "Tuneyard", reference: str) -> str:
    """The id of a job. A whole id is taken as it is, without asking.

    Raises:
        AmbiguousReference: several jobs' ids begin so.
        NotFound: none does.
    """
    if is_whole(reference) or not is_prefix(reference):
        return reference  # what no id can begin with is refused by the service in its own words
    found = {
        job.job_id: f"{job.status:<9}  {job.config.get('model_name') or ''}"
        for job in client.jobs(id_prefix=reference, limit=SHOWN + 1)
    }
    return choose(reference, "jobs", found) or _refuse("job_not_found", f"No job's id begins with {reference}")


def find_config_id(client: "Tuneyard", reference: str) -> str:
    """The id of a saved configuration, by id, first characters or name.

    Raises:
        AmbiguousReference: several fit.
        NotFound: none does.
    """
    if is_whole(reference):
        return reference
    found = {saved.config_id: saved.name for saved in client.configs.list(name=reference)}
    if is_prefix(reference):
        found |= {saved.config_id: saved.name for saved in client.configs.list(id_prefix=reference)}
    missing = f"No saved configuration is called {reference}, and no id begins so; see `configs list`"
    return choose(reference, "configurations", found) or _refuse("config_not_found", missing)


def find_delivery_id(client: "Tuneyard", job_id: str, reference: str) -> str:
    """The id of one of a job's deliveries. Raises AmbiguousReference or NotFound."""
    if is_whole(reference):
        return reference
    found = choose_by_prefix(reference, "deliveries", {one.delivery_id: one.event for one in client.deliveries(job_id)})
    return found or _refuse("delivery_not_found", f"No delivery of job {job_id} has an id that begins with {reference}")


def choose_by_prefix(prefix: str, kind: str, known: Mapping[str, str]) -> str | None:
    """The one of these ids that begins so, None if none does. Raises AmbiguousReference."""
    alike = {one: label for one, label in known.items() if is_prefix(prefix) and one.startswith(prefix.lower())}
    return choose(prefix, kind, alike)


def choose(reference: str, kind: str, found: Mapping[str, str]) -> str | None:
    """The only id that was found, None if there is none. Raises AmbiguousReference, which lists them."""
    if len(found) <= 1:
        return next(iter(found), None)
    lines = [f"  {one}  {escape(label)}" for one, label in [*found.items()][:SHOWN]]
    count = str(len(found)) if len(found) <= SHOWN else f"more than {SHOWN}"
    raise AmbiguousReference("\n".join([f"{reference} fits {count} {kind}; give more of the id:", *lines]))


def is_whole(reference: str) -> bool:
    """Whether it is a whole id."""
    try:
        return str(UUID(reference)) == reference.lower()
    except ValueError:
        return False


def _refuse(code: str, detail: str) -> str:
    """Raise what the service's own 404 of this code raises."""
    from tuneyard_client.errors import NotFound

    raise NotFound(detail, HTTPStatus.NOT_FOUND, code)
