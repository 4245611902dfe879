"""`python -m jobs.stack.launch [options] -- PROGRAM ...`: prepares a process and replaces it by a program (exec).

`--parent` passes its pid to the program's children (`jobs.keeper`). `--user` runs PostgreSQL, which refuses root, as
another user. That user needs no access to the path of `--within`: the process enters it before it changes its user.
"""

import argparse
import os
import pwd
import sys
from collections.abc import Sequence
from pathlib import Path

from jobs.keeper import PARENT

HERE = "/proc/self/cwd"  # the current folder, independent of its path


def enter(folder: Path, user: str | None) -> None:
    """Change to `folder`, then permanently to `user`."""
    os.chdir(folder)
    if user is not None:
        account = pwd.getpwnam(user)
        os.setgroups([])
        os.setgid(account.pw_gid)
        os.setuid(account.pw_uid)


def main(arguments: Sequence[str]) -> None:
    """Prepare this process and replace it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parent", action="store_true", help=f"set {PARENT} to this process's id")
    parser.add_argument("--within", type=Path, default=Path(), help="folder to enter")
    parser.add_argument("--user", help="user to run as")
    parser.add_argument("program", nargs="+")
    options = parser.parse_args(arguments)
    if options.parent:
        os.environ[PARENT] = str(os.getpid())
    enter(options.within, options.user)
    os.execv(options.program[0], options.program)  # noqa: S606 - replaces this process


if __name__ == "__main__":
    main(sys.argv[1:])
