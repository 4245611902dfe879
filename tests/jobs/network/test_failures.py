"""What clients are told of a server that could not be asked: words, and no names of exceptions."""

import ast
import socket

import httpcore
import httpx
import psycopg2
import pytest
from sqlalchemy import exc

from jobs.network.failures import describe_failure
from jobs.settings import PROJECT_ROOT
from jobs.storage.bounded_postgres import PostgresTimeout
from jobs.storage.connections import translate_errors
from sft.errors import StackError
from tests.conftest import free_port

REQUEST = httpx.Request("GET", "http://server.example")
SHOWN_CALLS = ("PartCheck", "CallOutcome")  # besides errors that are raised


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (httpx.ReadTimeout(""), "no response in time"),
        (httpcore.ConnectTimeout(), "no response in time"),
        (TimeoutError("the server has sent too little"), "no response in time"),
        (httpx.ConnectError("[Errno 111] Connection refused"), "no connection"),
        (httpx.ReadError("reset"), "the connection was cut off"),
        (ConnectionResetError(104, "reset"), "the connection was cut off"),
        (httpx.RemoteProtocolError("peer closed"), "its response breaks off or is no HTTP"),
        (httpx.HTTPStatusError("502", request=REQUEST, response=httpx.Response(502)), "it responds with 502"),
        (socket.gaierror(-2, "Name or service not known"), "Name or service not known"),
        (ValueError("Expecting value: line 1"), "its response can't be read"),
        (KeyError("model_versions"), "an unexpected error, which the log names"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_a_failure_is_told_in_words(error, words, caplog):
    assert describe_failure(error) == words
    assert ("KeyError" in caplog.text) == isinstance(error, KeyError)


def test_the_cause_counts_where_the_error_itself_says_nothing():
    outer = RuntimeError("x")
    outer.__cause__ = httpx.ConnectError("refused")
    assert describe_failure(outer) == "no connection"


def test_a_server_that_is_not_there():
    with pytest.raises(httpx.ConnectError) as nobody:
        httpx.get(f"http://127.0.0.1:{free_port()}")
    assert describe_failure(nobody.value) == "no connection"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (exc.PendingRollbackError("Can't reconnect until invalid transaction is rolled back"), "(no connection)"),
        (exc.OperationalError("SELECT 1", {}, psycopg2.OperationalError("refused")), "(no connection)"),
        (exc.OperationalError("SELECT 1", {}, PostgresTimeout("too long")), "(no response in time)"),
        (exc.TimeoutError("QueuePool limit"), "(all connections to it are in use)"),
        (exc.ProgrammingError("SELECT 1", {}, psycopg2.ProgrammingError("x")), "(it refused a statement;"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_a_failure_of_the_database_is_told_in_words(error, words, caplog):
    with pytest.raises(StackError) as told, translate_errors():
        raise error
    assert f"Tuneyard's database can't be reached {words}" in str(told.value)
    assert type(error).__name__ not in str(told.value)
    assert ("ProgrammingError" in caplog.text) == isinstance(error, exc.ProgrammingError)


def test_no_error_of_the_service_shows_the_name_of_an_exception():
    files = [path for folder in ("api", "jobs") for path in sorted((PROJECT_ROOT / folder).rglob("*.py"))]
    shown = [f"{path.relative_to(PROJECT_ROOT)}:{line}" for path in files for line in find_names(path.read_text())]
    assert len(files) > 100
    assert shown == []


def find_names(source):
    """Lines at which an error, or what is shown as one, holds the name of an exception's class."""
    for node in ast.walk(ast.parse(source)):
        is_call = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in SHOWN_CALLS
        if not (isinstance(node, ast.Raise) or is_call):
            continue
        for part in ast.walk(node):
            if isinstance(part, ast.Attribute) and part.attr == "__name__" and "error" in ast.unparse(part):
                yield part.lineno
