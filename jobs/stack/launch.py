"""`python -m jobs.stack.launch [options] -- PROGRAM ...`: prepares a process and replaces it by a program (exec).

`--parent` passes its pid to the program's children (`jobs.keeper`). `--trainer` reduces its environment to what jobs
need: the database URL of the trainers' role, and no secret that only the servers and the watchdog use. `--user` runs
PostgreSQL, which refuses root, as another user. That user needs no access to the path of `--within`: the process enters
it before it changes its user.
"""

import argparse
import os
import pwd
import sys
from collections.abc import MutableMapping, Sequence
from pathlib import Path

from jobs.keeper import PARENT

TRAINER_URL, DATABASE_URL = "TUNEYARD_TRAINER_DATABASE_URL", "TUNEYARD_DATABASE_URL"
NOT_FOR_JOBS = (
    *("TUNEYARD_WEBHOOK_SECRETS", "PREFECT_SERVER_DATABASE_CONNECTION_URL"),
    *("_MLFLOW_SERVER_FILE_STORE", "_MLFLOW_SERVER_REGISTRY_STORE"),
)
HERE = "/proc/self/cwd"  # the current folder, independent of its path


def enter(folder: Path, user: str | None) -> None:
    """Change to `folder`, then permanently to `user`."""
    os.chdir(folder)
    if user is not None:
        account = pwd.getpwnam(user)
        os.setgroups([])
        os.setgid(account.pw_gid)
        os.setuid(account.pw_uid)


def limit_to_trainers(environment: MutableMapping[str, str]) -> None:
    """Remove from an environment what jobs must not have."""
    for name in NOT_FOR_JOBS:
        environment.pop(name, None)
    if url := environment.pop(TRAINER_URL, None):
        environment[DATABASE_URL] = url


def main(arguments: Sequence[str]) -> None:
    """Prepare this process and replace it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parent", action="store_true", help=f"set {PARENT} to this process's id")
    parser.add_argument("--trainer", action="store_true", help="take what jobs must not have out of the environment")
    parser.add_argument("--within", type=Path, default=Path(), help="folder to enter")
    parser.add_argument("--user", help="user to run as")
    parser.add_argument("program", nargs="+")
    options = parser.parse_args(arguments)
    if options.parent:
        os.environ[PARENT] = str(os.getpid())
    if options.trainer:
        limit_to_trainers(os.environ)
    enter(options.within, options.user)
    os.execv(options.program[0], options.program)  # noqa: S606 - replaces this process


if __name__ == "__main__":
    main(sys.argv[1:])
