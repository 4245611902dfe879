"""SQLAlchemy URLs of the stack's databases, for psycopg2, and for asyncpg, by which Prefect connects."""

from pathlib import Path
from urllib.parse import quote

from sqlalchemy import make_url

from jobs.settings import Settings
from jobs.stack.process_manager import plain_home
from jobs.storage.trainer_role import trainer_url
from sft.errors import StackError

# libpq's parameters that asyncpg reads from the environment, where SQLAlchemy would pass them as arguments it lacks.
_ASYNCPG_VARIABLES = {
    **{name: f"PG{name.upper()}" for name in ("sslmode", "sslrootcert", "sslcert", "sslkey", "sslcrl")},
    **{name: f"PG{name.upper()}" for name in ("sslnegotiation", "passfile", "krbsrvname", "gsslib")},
    "ssl_min_protocol_version": "PGSSLMINPROTOCOLVERSION",
    "ssl_max_protocol_version": "PGSSLMAXPROTOCOLVERSION",
    "target_session_attrs": "PGTARGETSESSIONATTRS",
}
_ASYNCPG_OWN = ("host", "port", "user", "password")
# Of one connection and its name; asyncpg and Prefect have values of their own.
_PSYCOPG2_ALONE = (
    *("application_name", "fallback_application_name", "client_encoding", "connect_timeout", "tcp_user_timeout"),
    *("keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count"),
)


def database_url(settings: Settings, database: str, driver: str = "psycopg2") -> str:
    """SQLAlchemy URL of a database: tuneyard, prefect or mlflow, embedded or on the configured server.

    Raises:
        StackError: the configured URL has a parameter that the driver lacks.
    """
    if settings.database_url is None:
        return local_url(plain_home(settings.home) / "postgres", database, driver)
    if database == "tuneyard":
        return settings.database_url
    return sibling_url(settings.database_url, database, driver)


def find_trainer_url(settings: Settings) -> str | None:
    """The URL of Tuneyard's database for trainers; None if your own server has no role for them yet."""
    if settings.database_url is not None:
        return settings.trainer_database_url
    return trainer_url(database_url(settings, "tuneyard"), None)  # the local socket asks for no password


def local_url(data: Path, database: str, driver: str = "psycopg2") -> str:
    """SQLAlchemy URL of a database on the embedded server, by a short, plain path of the cluster."""
    return f"postgresql+{driver}://postgres@/{database}?host={quote(str(data), safe='/')}"


def sibling_url(database_url: str, database: str, driver: str = "psycopg2") -> str:
    """The URL of another database on the same server.

    Raises:
        StackError: it has a parameter that asyncpg, which Prefect connects by, can't follow.
    """
    url = make_url(database_url).set(database=database, drivername=f"postgresql+{driver}")
    if driver == "asyncpg":
        if strange := sorted({*url.query} - {*_ASYNCPG_VARIABLES, *_ASYNCPG_OWN, *_PSYCOPG2_ALONE}):
            raise StackError(
                f"TUNEYARD_DATABASE_URL has {', '.join(strange)}, which the driver of a local Prefect server does not "
                "know; leave it out, or set PREFECT_API_URL to a Prefect server of your own"
            )
        url = url.difference_update_query([*_ASYNCPG_VARIABLES, *_PSYCOPG2_ALONE])
    return url.render_as_string(hide_password=False)


def asyncpg_environment(database_url: str | None) -> dict[str, str]:
    """The variables by which asyncpg gets what the URL's parameters tell libpq, such as `sslmode` and `sslrootcert`."""
    query = make_url(database_url).query if database_url else {}
    return {variable: str(query[name]) for name, variable in _ASYNCPG_VARIABLES.items() if name in query}
