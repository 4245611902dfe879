"""`tuneyard keys` as an administrator types it."""

import json
from uuid import uuid4

import pytest
from typer.testing import CliRunner

import cli.__main__ as cli
from jobs.clients.keys import hash_key, read_snapshot
from jobs.stack.database_urls import sibling_url
from jobs.stack.postgres import ensure_databases
from jobs.storage.tables import engine_for

pytestmark = pytest.mark.stack


@pytest.fixture
def database_url(stack, monkeypatch, tmp_path):
    """A database without a key, named by the environment as somebody else's server is."""
    name = f"keys_{uuid4().hex}"
    url = sibling_url(stack.database_url, name)
    ensure_databases(stack.database_url, [name])
    monkeypatch.setenv("TUNEYARD_HOME", str(tmp_path))  # where it is noted that keys are in use
    monkeypatch.setenv("TUNEYARD_DATABASE_URL", url)
    monkeypatch.setenv("PREFECT_API_URL", stack.prefect_api_url)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", stack.mlflow_tracking_uri)
    yield url
    engine_for(url).dispose()


def run(*words):
    return CliRunner().invoke(cli.main, ["keys", *words])


def test_a_key_is_made_shown_once_listed_and_revoked(database_url):
    assert run("list").output == "There are no keys: the API does not require one.\n"

    made = run("create", "ci")
    key = made.stdout.strip()
    assert made.exit_code == 0
    assert "for ci, scope submit. It is not shown again:" in made.stderr
    assert "This is the first key: from now on the API requires one." in made.stderr
    assert [client.name for client in read_snapshot(engine_for(database_url)).clients.values()] == ["ci"]
    assert list(read_snapshot(engine_for(database_url)).clients) == [hash_key(key)]

    second = run("create", "board", "--scope", "read")
    assert "This is the first key" not in second.stderr
    listed = run("list").output
    assert key not in listed
    assert [(line.split()[2], line.split()[-1]) for line in listed.splitlines()] == [
        ("submit", "ci"),
        ("read", "board"),
    ]

    key_id = listed.split()[0]
    assert [one["name"] for one in json.loads(run("list", "--json").stdout)] == ["ci", "board"]
    assert run("revoke", key_id[:-2]).output == f"Revoked {key_id} (ci).\n"
    assert run("revoke", key_id).exit_code == 0
    assert "revoked 20" in run("list").output.splitlines()[0]
    assert [client.name for client in read_snapshot(engine_for(database_url)).clients.values()] == ["board"]


def test_a_key_for_the_jobs_of_another_is_told(database_url):
    run("create", "ci")
    first = run("list").output.split()[0]

    made = run("create", "board", "--scope", "read", "--of", first[:8])
    assert f"scope read, jobs of {first}. It is not shown again" in made.stderr
    assert run("list").output.splitlines()[1].endswith(f"board  (jobs of {first})")
    board = json.loads(run("list", "--json").stdout)[1]["id"]
    run("create", "next", "--of", board)  # the owner is that of the key it names
    run("revoke", first)
    assert [one["owner_id"] for one in json.loads(run("list", "--json").stdout)] == [first] * 3
    snapshot = read_snapshot(engine_for(database_url))
    assert {str(client.owner_id) for client in snapshot.clients.values()} == {first}

    unknown = run("create", "x", "--of", "550e8400-e29b-41d4-a716-446655440000")
    assert unknown.exit_code == 3
    assert "API key 550e8400-e29b-41d4-a716-446655440000 not found" in unknown.stderr
    assert len(json.loads(run("list", "--json").stdout)) == 3


def test_a_read_key_that_sees_nothing_is_told_so(database_url, monkeypatch):
    note = "TUNEYARD_READ_KEYS_SEE is own, so this key sees no job"
    assert note not in run("create", "board", "--scope", "read").stderr
    monkeypatch.setenv("TUNEYARD_READ_KEYS_SEE", "own")
    assert note in run("create", "board", "--scope", "read").stderr
    assert note not in run("create", "ci").stderr


@pytest.mark.parametrize("unknown", ["nonsense", "550e8400-e29b-41d4-a716-446655440000"])
def test_an_unknown_key_is_named(database_url, unknown):
    result = run("revoke", unknown)

    assert result.exit_code == 3
    assert result.stderr == f"tuneyard: API key {unknown} not found; `tuneyard keys list` shows them\n"


@pytest.mark.parametrize("name", ["", "  ", "a\nb", "\x1b[31m"])
def test_a_name_that_lists_can_not_show_is_refused(database_url, name):
    result = run("create", name)

    assert result.exit_code == 3
    assert f"name must be printable and not blank, got {name!r}" in result.stderr


def test_an_unknown_scope_is_refused(database_url):
    assert run("create", "ci", "--scope", "root").exit_code == 2
