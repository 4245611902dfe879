"""`tuneyard trainer-role`: the database role of jobs on your own workers."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from tuneyard_cli.output import print_json, print_line
from tuneyard_cli.service import JsonOption

if TYPE_CHECKING:
    from cli.diagnosis import Diagnosis
    from jobs.settings import Settings

PANEL = "The service on this machine"

commands = typer.Typer()


@commands.command("trainer-role", rich_help_panel=PANEL)
def trainer_role(
    new_password: Annotated[bool, typer.Option("--new-password", help="Give an existing role a new password.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Create the role with which jobs write their own rows of your database (TUNEYARD_DATABASE_URL) and nothing else.

    Prints its URL once: the TUNEYARD_DATABASE_URL of workers. Run it as the database's owner, who needs the right
    CREATEROLE. The local database has such a role by itself.
    """
    from jobs.settings import Settings
    from jobs.storage.tables import engine_for
    from jobs.storage.trainer_role import make_role, role_name, trainer_url
    from sft.errors import StackError

    url = Settings().database_url
    if url is None:
        raise StackError(
            "TUNEYARD_DATABASE_URL is not set; set it to your database. The local stack's database has the role already"
        )
    password = make_role(engine_for(url), url, with_password=True, is_renewed=new_password)
    made = trainer_url(url, password) if password else None
    if as_json:
        print_json({"role": role_name(url), "url": made})
        return
    if made is None:
        print_line(f"Role {role_name(url)} has its rights and keeps its password; --new-password sets a new one.")
        return
    print_line(
        f"Role {role_name(url)}. Set this as TUNEYARD_DATABASE_URL for workers; it is not shown again:", err=True
    )
    typer.echo(made)  # nothing else on stdout


def check_trainers(settings: "Settings") -> Iterator["Diagnosis"]:
    """Check that jobs do not connect to the database as its owner. Yields nothing if the database does not respond."""
    from sqlalchemy.exc import SQLAlchemyError

    from cli.diagnosis import Diagnosis, Level
    from jobs.stack.readiness import known_addresses
    from jobs.storage.bounded_postgres import bounded_engine_for
    from jobs.storage.claims import is_limited
    from jobs.storage.connections import autocommit
    from jobs.storage.trainer_role import find_owners_at_work
    from sft.errors import StackError

    try:
        with autocommit(bounded_engine_for(str(known_addresses(settings).database_url))) as connection:
            if is_limited(connection):
                yield Diagnosis(Level.OK, "database", "this machine's workers have the trainers' role")
                return
            hosts = find_owners_at_work(connection)
    except (SQLAlchemyError, StackError):
        return
    if not hosts:
        yield Diagnosis(Level.OK, "database", "no job of the last day connected as its owner")
        return
    remedy = "give workers the URL that `tuneyard trainer-role` prints as TUNEYARD_DATABASE_URL"
    names = ", ".join(hosts)
    yield Diagnosis(Level.WARN, "database", f"jobs on {names} connect as its owner and could make API keys", remedy)
