"""`tuneyard keys`: make, list and revoke the keys that clients of the REST API show."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer
from sqlalchemy import Engine

from jobs import keys, stack
from jobs.door import Door
from jobs.keys import KeyScope
from jobs.settings import Settings
from sft.errors import TuneyardError

keys_app = typer.Typer(
    help="API keys. With the first one made, the API asks every client for one.", no_args_is_help=True
)


@keys_app.command("create")
def create(
    name: Annotated[str, typer.Argument(help="Whose key it is, to recognise it by.")],
    scope: Annotated[
        KeyScope, typer.Option(help="read: look; submit: also start, stop and save; admin: everything.")
    ] = KeyScope.SUBMIT,
) -> None:
    """Make a key and show it, this once."""
    with _database() as engine:
        is_first = not keys.list_keys(engine)
        record, key = keys.create_key(engine, name, scope)
    typer.echo(f"Key {record.id} for {record.name}, scope {scope}. It is not shown again:", err=True)
    typer.echo(key)  # alone on standard output, for KEY=$(tuneyard keys create ci)
    if is_first:
        typer.echo(
            "This is the first key: from now on the API answers nobody without one. Prefect's UI and API on this "
            "machine ask for a password from the stack's next start on: `tuneyard down`, then `tuneyard up`.",
            err=True,
        )


@keys_app.command("list")
def show() -> None:
    """Show every key, but not what it is."""
    with _database() as engine:
        records = keys.list_keys(engine)
    if not records:
        typer.echo("No key has been made: the API asks nobody for one.")
    for record in records:
        state = f"revoked {record.revoked_at:%Y-%m-%d}" if record.revoked_at else "valid"
        scopes = ",".join(record.scopes)
        typer.echo(
            f"{record.id}  {record.prefix}…  {scopes:<6}  {record.created_at:%Y-%m-%d}  {state:<18}  {record.name}"
        )


@keys_app.command("revoke")
def revoke(key_id: Annotated[str, typer.Argument(metavar="ID", help="The key's id, as `keys list` shows it.")]) -> None:
    """End a key's validity, within a few seconds and for good. The API does not open again with the last one gone."""
    with _database() as engine:
        record = keys.revoke_key(engine, key_id)
    typer.echo(f"Revoked {record.id} ({record.name}).")


@contextmanager
def _database() -> Iterator[Engine]:
    """The database of keys, its stack started if need be; errors end the command with their message."""
    settings = Settings()
    try:
        if not stack.is_up(settings):
            typer.echo("Starting the local stack ...", err=True)
        with Door(settings) as door:
            yield door.open().engine
    except TuneyardError as error:
        typer.echo(f"tuneyard: {error}", err=True)
        raise typer.Exit(1) from error
