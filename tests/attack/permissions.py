"""Another account of the machine looks for what it can open of a service's files."""

import os
import pwd
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from jobs.privacy import tighten
from jobs.stack.process_manager import stack_processes
from tests.attack.case import Finding, Harm, Target, case

OTHERS = 0o077
ANOTHER = "nobody"
LOOK = """
import os, sys
opened = []
for folder, _, names in os.walk(sys.argv[1]):
    paths = [os.path.join(folder, name) for name in names]
    opened += [folder, *(path for path in paths if os.access(path, os.R_OK))]
print("\\n".join(opened))
"""


@dataclass(frozen=True)
class Rights:
    """What there is below a folder, what has rights for others, what another account opens, and open-handed processes.

    `opened` is None where this process may not become another account.
    """

    found: int
    open: int
    opened: int | None
    processes: int
    loose_processes: int  # whose umask would let others in

    @property
    def reachable(self) -> int:
        """Breaches: what another account did open, or could for the modes alone."""
        return self.open if self.opened is None else self.opened


@case
def other_accounts_open_nothing(target: Target) -> Iterator[Finding]:
    """By the modes of all files, as another account where that can be tried, and by the processes' umask."""
    rights = look_as_another(target.service.settings.home)
    if rights.reachable:
        yield Finding(Harm.LEAKED, f"another account opens files: {rights}")
    if rights.loose_processes or not rights.processes:
        yield Finding(Harm.LEAKED, f"processes would let others in: {rights}")


@case
def an_old_home_is_closed_and_nothing_beside_it(target: Target) -> Iterator[Finding]:
    """Hard links and links in it lead to files of others, which keep their modes."""
    home, outside = target.folder / "old-home", target.folder / "outside-of-it"
    for folder in (home / "data", outside):
        folder.mkdir(parents=True)
        folder.chmod(0o755)
    secret, neighbour = home / "data" / "rows.jsonl", outside / "neighbour"
    for path in (secret, neighbour):
        path.write_text("x", encoding="utf-8")
        path.chmod(0o644)
    (home / "link").symlink_to(neighbour)
    (home / "folder").symlink_to(outside)
    os.link(neighbour, home / "hard")
    tighten(home)
    if open_as_another(home) or secret.stat().st_mode & OTHERS:
        yield Finding(Harm.LEAKED, "an old home stays open")
    if neighbour.stat().st_mode & 0o777 != 0o644 or outside.stat().st_mode & 0o777 != 0o755:
        yield Finding(Harm.ESCAPED, "closing an old home changed what lies elsewhere")


def look_as_another(home: Path) -> Rights:
    """Walk a state folder by modes, and as another account where this process is root's."""
    paths = [home, *(path for path in home.rglob("*") if not path.is_symlink())]
    modes = [path.lstat().st_mode for path in paths if path.exists()]
    is_open = [mode for mode in modes if mode & OTHERS and not stat.S_ISSOCK(mode)]
    processes = stack_processes(home)
    loose = sum(read_umask(process) & OTHERS != OTHERS for process in processes)
    return Rights(len(modes), len(is_open), open_as_another(home), len(processes), loose)


def open_as_another(home: Path) -> int | None:
    """How many files and folders another account can open; None where it can't be tried."""
    if os.geteuid() != 0:
        return None
    account = pwd.getpwnam(ANOTHER)
    python = "/usr/bin/python3" if Path("/usr/bin/python3").exists() else sys.executable
    done = subprocess.run(
        [python, "-c", LOOK, str(home)],
        user=account.pw_uid,
        group=account.pw_gid,
        extra_groups=[],
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    return len(done.stdout.split()) if done.returncode == 0 else None


def read_umask(process: psutil.Process) -> int:
    """The umask of a process; that of one that is gone lets nobody in. PostgreSQL's, in its own folder, is its own."""
    try:
        lines = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1], 8) for line in lines if line.startswith("Umask:"))
    except (OSError, StopIteration):
        return OTHERS
