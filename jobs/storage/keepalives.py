"""TCP keepalives for connections to PostgreSQL, so that each side soon notices if the other's host is lost.

By default both would wait for two hours or more, and the server would keep a lost client's locks as long.
"""

from typing import Any

from sqlalchemy import Engine, event

IDLE_SECONDS, INTERVAL_SECONDS, COUNT = 10, 5, 3
UNSENT_SECONDS = 30  # until data that the other side does not acknowledge ends the connection


def keep_alive(engine: Engine) -> Engine:
    """Have both sides of the engine's connections send keepalives; returns the engine. No effect on unix sockets."""

    @event.listens_for(engine, "do_connect")
    def ask_client(_dialect: object, _record: object, _arguments: object, parameters: dict[str, Any]) -> None:
        parameters.setdefault("keepalives_idle", IDLE_SECONDS)
        parameters.setdefault("keepalives_interval", INTERVAL_SECONDS)
        parameters.setdefault("keepalives_count", COUNT)
        parameters.setdefault("tcp_user_timeout", UNSENT_SECONDS * 1000)

    @event.listens_for(engine, "connect")
    def ask_server(connection: Any, _record: object) -> None:
        if (connection.info.host or "/").startswith("/"):
            return
        with connection.cursor() as cursor:
            cursor.execute(
                f"SET tcp_keepalives_idle = {IDLE_SECONDS}; SET tcp_keepalives_interval = {INTERVAL_SECONDS}; "
                f"SET tcp_keepalives_count = {COUNT}; SET tcp_user_timeout = {UNSENT_SECONDS * 1000}"
            )
        connection.commit()

    return engine
