"""`tuneyard keys`: create, list and revoke API keys."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any
from uuid import UUID

import typer
from sqlalchemy import Engine

from jobs.clients import keys
from jobs.clients.keys import KeyScope
from jobs.service.access import StackAccess
from jobs.settings import Settings
from jobs.stack import local as stack
from jobs.storage.tables import ApiKey
from tuneyard_cli.output import print_json, print_line
from tuneyard_cli.references import choose_by_prefix, is_complete
from tuneyard_cli.service import JsonOption

keys_app = typer.Typer(
    help="API keys: create, list, revoke. Creating the first key turns authentication on, permanently.",
    no_args_is_help=True,
)


@keys_app.command("create")
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the key, such as its user's.")],
    scope: Annotated[
        KeyScope, typer.Option(help="read: GET only; submit: also create, change and ask; admin: everything.")
    ] = KeyScope.SUBMIT,
    of: Annotated[
        str | None,
        typer.Option(
            metavar="KEY_ID",
            help="Key that owns the new key's jobs, such as the one it replaces; the new key itself if not given.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Create a key. It is displayed once.

    A submit key can see and cancel the jobs that it created, an admin key all (TUNEYARD_SUBMIT_KEYS_SEE,
    TUNEYARD_READ_KEYS_SEE).
    """
    with _database() as engine:
        is_first = not keys.list_keys(engine)
        record, key = keys.create_key(engine, name, scope, _find_owner(engine, of) if of is not None else None)
    if is_first:
        keys.remember_keys(keys.keys_marker(Settings().home))  # an API that runs here requires keys at once
    if as_json:
        print_json({**_plain(record), "key": key, "is_first": is_first})
        return
    owner = f", jobs of {record.owner_id}" if record.owner_id else ""
    print_line(f"Key {record.id} for {record.name}, scope {scope}{owner}. It is not shown again:", err=True)
    typer.echo(key)  # nothing else on stdout, for KEY=$(tuneyard keys create ci)
    if scope is KeyScope.READ and of is None and Settings().read_keys_see == "own":
        typer.echo(
            "TUNEYARD_READ_KEYS_SEE is own, so this key sees no job; --of KEY_ID creates one for another key's jobs.",
            err=True,
        )
    if is_first:
        typer.echo(
            "This is the first key: from now on the API requires one. Prefect's UI and API on this machine require a "
            "password after the next start of the stack: `tuneyard down`, then `tuneyard up`.",
            err=True,
        )


@keys_app.command("list")
def show(as_json: JsonOption = False) -> None:
    """List keys (secrets are not shown)."""
    with _database() as engine:
        records = keys.list_keys(engine)
    if as_json:
        print_json([_plain(record) for record in records])
        return
    if not records:
        typer.echo("There are no keys: the API does not require one.")
    for record in records:
        state = f"revoked {record.revoked_at:%Y-%m-%d}" if record.revoked_at else "valid"
        scopes = ",".join(record.scopes)
        owner = f"  (jobs of {record.owner_id})" if record.owner_id else ""
        print_line(
            f"{record.id}  {record.prefix}…  {scopes:<6}  {record.created_at:%Y-%m-%d}  {state:<18}  "
            f"{record.name}{owner}"
        )


@keys_app.command("revoke")
def revoke(
    key: Annotated[str, typer.Argument(metavar="KEY_ID", help="Id of the key, or its first 4 or more characters.")],
    as_json: JsonOption = False,
) -> None:
    """Revoke a key permanently, within a few seconds. Revoking the last one does not turn authentication off."""
    with _database() as engine:
        record = keys.revoke_key(engine, _complete(engine, key))
    if as_json:
        print_json(_plain(record))
    else:
        print_line(f"Revoked {record.id} ({record.name}).")


def _complete(engine: Engine, key: str) -> str:
    """Resolve a key's id or id prefix to the full id."""
    known = {} if is_complete(key) else {str(one.id): one.name for one in keys.list_keys(engine)}
    return choose_by_prefix(key, "keys", known) or key


def _find_owner(engine: Engine, key: str) -> UUID:
    record = keys.find_key(engine, _complete(engine, key))
    return record.owner_id or record.id


def _plain(record: ApiKey) -> dict[str, Any]:
    return {
        "id": str(record.id),
        "name": record.name,
        "prefix": record.prefix,
        "scopes": [*record.scopes],
        "owner_id": str(record.owner_id or record.id),
        "created_at": record.created_at.isoformat(),
        "revoked_at": record.revoked_at.isoformat() if record.revoked_at else None,
    }


@contextmanager
def _database() -> Iterator[Engine]:
    """Yield the database of keys. Starts the stack if it is not running."""
    settings = Settings()
    if not stack.is_up(settings):
        typer.echo("Starting the local stack ...", err=True)
    with StackAccess(settings) as access:
        yield access.open().engine
