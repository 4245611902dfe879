"""A PostgreSQL server without the rest of the stack, for tests of what needs no more."""

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import alembic.command
import alembic.config
from sqlalchemy import Engine

from jobs.project import PROJECT_ROOT
from jobs.stack import postgres
from jobs.stack.database_urls import local_url
from jobs.stack.process_manager import make_run_folder, plain_home, run_folder
from jobs.storage.schema import MIGRATIONS
from tests.conftest import wait_until


@contextmanager
def server(home: Path) -> Iterator[str]:
    """A server on a fresh cluster in `home`; its URL."""
    make_run_folder(home)
    data = plain_home(home) / "postgres"
    postgres.prepare_cluster(data)
    environment = os.environ | {"PYTHONPATH": str(PROJECT_ROOT)}
    command = [*postgres.server_command(data), "-c", "fsync=off"]  # no test takes the machine's power away
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    try:
        url = local_url(data, "postgres")
        wait_until(lambda: postgres.is_ready(url), 90)
        yield url
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)
        if run_folder(home).parent != home:
            subprocess.run(["rm", "-rf", str(run_folder(home))], check=True)


def upgrade(engine: Engine, revision: str) -> None:
    """Bring the schema of a database to this revision, as an earlier version of the code has left it."""
    config = alembic.config.Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        alembic.command.upgrade(config, revision)
