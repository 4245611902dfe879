"""Prepares a process for another program and becomes that: `python -m jobs.stack.launch [options] -- PROGRAM ...`.

`--parent` lets the program's children know its pid (`jobs.keeper`). `--user` runs PostgreSQL, which refuses root, as
another user, who need not be able to reach the folder `--within`: the process enters it before it changes its user.
"""

import argparse
import os
import pwd
import sys
from collections.abc import Sequence
from pathlib import Path

from jobs.keeper import PARENT

HERE = "/proc/self/cwd"  # the current folder, whatever folders lead to it


def enter(folder: Path, user: str | None) -> None:
    """Make `folder` the current one, then `user` the one who runs this process; for good."""
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
    parser.add_argument("--user", help="whom to run as")
    parser.add_argument("program", nargs="+")
    options = parser.parse_args(arguments)
    if options.parent:
        os.environ[PARENT] = str(os.getpid())
    enter(options.within, options.user)
    os.execv(options.program[0], options.program)  # noqa: S606 - that is the point


if __name__ == "__main__":
    main(sys.argv[1:])
