"""A real PostgreSQL that stands still, has a full disk or takes no writes: clear answers soon, and nothing is lost."""

import contextlib
import hashlib
import subprocess
import tempfile
import threading
import time
from contextlib import contextmanager
from contextvars import copy_context
from pathlib import Path
from urllib.parse import unquote

import httpx
import psutil
import pytest
import uvicorn
from sqlalchemy import create_engine, text

from api.main import create_app
from jobs.network.deadlines import allow
from jobs.settings import Settings
from jobs.stack import postgres
from jobs.stack.database_urls import sibling_url
from jobs.storage.tables import migrate
from tests.bare_postgres import server
from tests.conftest import free_port, wait_until

ALLOWED = 1.0  # in place of six seconds, so that the test is short
SOON = 20 * ALLOWED  # who waits for the server to go on waits for ever


@pytest.fixture(scope="module")
def disk():
    """A filesystem of its own for the cluster, where this account may mount one."""
    with tempfile.TemporaryDirectory(prefix="tuneyard-disk-") as name:
        mount = ["mount", "-t", "tmpfs", "-o", "size=160m,mode=755", "tmpfs", name]
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
        yield Path(name), mounted
        if mounted:
            subprocess.run(["umount", "--lazy", name], check=True)


@pytest.fixture(scope="module")
def database(disk):
    """The URL of a database with its tables."""
    home = disk[0] / "home"
    home.mkdir()
    with server(home) as url:
        postgres.ensure_databases(url, ["tuneyard"])
        database_url = sibling_url(url, "tuneyard")
        migrate(database_url)
        yield database_url


@pytest.fixture(scope="module")
def api(database, tmp_path_factory):
    """A client of the app at a server of its own; Prefect and MLflow are not there."""
    nowhere = f"http://127.0.0.1:{free_port()}"
    home = tmp_path_factory.mktemp("home")
    settings = Settings(home=home, database_url=database, prefect_api_url=nowhere, mlflow_tracking_uri=nowhere)
    port = free_port()
    app = uvicorn.Server(uvicorn.Config(create_app(settings), port=port, log_level="error"))
    with allow(ALLOWED):
        thread = threading.Thread(target=copy_context().run, args=[app.run])
    thread.start()
    limits = httpx.Limits(max_connections=None)
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, limits=limits) as client:
        wait_until(lambda: app.started, 90)
        wait_until(lambda: client.get("/api/sft/configs").status_code == 200, 90)
        yield client
        app.should_exit = True
        thread.join()


def save(api, name, **config):
    return api.post("/api/sft/configs", json={"name": name, "config": config})


def list_names(api):
    return [config["name"] for config in api.get("/api/sft/configs").json()]


def refused(answer):
    assert (answer.status_code, answer.json()["code"]) == (503, "stack_unavailable"), answer.text
    assert int(answer.headers["Retry-After"]) > 0
    assert answer.elapsed.total_seconds() < SOON
    return answer.json()["detail"]


@contextmanager
def stopped(database_url):
    """Every process of the server stands still."""
    folder = Path(unquote(database_url.split("host=")[1]))
    postmaster = psutil.Process(int((folder / "postmaster.pid").read_text().split()[0]))
    processes = [postmaster, *postmaster.children()]
    for process in processes:
        process.suspend()
    try:
        yield
    finally:
        for process in processes:
            process.resume()


def test_a_server_that_stands_still_is_told_in_time_to_each_of_many(api, database):
    paths = ("/api/sft/configs", "/train", "/queue", "/train/550e8400-e29b-41d4-a716-446655440000", "/metrics")
    answers = []
    with stopped(database):
        threads = [
            threading.Thread(target=lambda path=path: answers.append((path, api.get(path)))) for path in paths * 9
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        health = [api.get("/health") for _ in range(5)]
    assert len(answers) == len(paths) * 9
    for path, answer in answers:
        if path == "/metrics":
            assert (answer.status_code, answer.elapsed.total_seconds() < SOON) == (200, True)
        else:
            refused(answer)
    assert {answer.status_code for answer in health} == {200}
    assert min(answer.elapsed.total_seconds() for answer in health) < ALLOWED
    wait_until(lambda: save(api, "after a standstill").status_code == 200, 30)


def test_a_server_that_takes_no_writes_says_so_and_is_read(api, database):
    """As one is that has become a replica."""
    plain = create_engine(database, isolation_level="AUTOCOMMIT")

    def switch(to):
        with plain.connect() as connection:
            connection.execute(text(f"ALTER SYSTEM SET default_transaction_read_only = {to}"))
            connection.execute(text("SELECT pg_reload_conf()"))

    switch("on")
    try:
        wait_until(lambda: save(api, "no writes").status_code != 200, 30)  # connections of before learn of it
        assert "takes no writes" in refused(save(api, "no writes"))
        assert api.get("/api/sft/configs").status_code == 200
    finally:
        switch("off")
        plain.dispose()
    wait_until(lambda: save(api, "after no writes").status_code == 200, 30)


def test_a_folder_that_is_read_only_is_told_and_nothing_is_lost(api, database):
    before = list_names(api)
    folder = Path(unquote(database.split("host=")[1])) / "base"
    places = [folder, *folder.rglob("*")]
    end_connections(database)  # new ones open the files anew
    modes = [(place, place.stat().st_mode) for place in places]
    for place, mode in modes:
        place.chmod(mode & ~0o222)
    try:
        wait_until(lambda: save(api, "read-only").status_code == 503, 30)
        for _ in range(5):
            refused(save(api, "read-only"))
    finally:
        for place, mode in modes:
            place.chmod(mode)
    wait_until(lambda: save(api, "after a folder that was read-only").status_code == 200, 30)
    kept = [name for name in list_names(api) if name not in before]
    assert set(kept) <= {"read-only", "after a folder that was read-only"}


def end_connections(database_url):
    """Those of the app."""
    plain = create_engine(database_url, isolation_level="AUTOCOMMIT")
    with plain.connect() as connection:
        ended = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'tuneyard'"
        connection.execute(text(f"{ended} AND pid <> pg_backend_pid()"))
    plain.dispose()


def test_a_full_disk_is_told_and_nothing_is_lost(api, disk, database):
    folder, is_mounted = disk
    if not is_mounted:
        pytest.skip("mounting a filesystem is root's privilege")
    words = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(2500)]  # which can't be packed
    before = list_names(api)
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"\0" * 2**16)
    kept, told = [], set()
    deadline = time.monotonic() + 60
    while not told:
        assert time.monotonic() < deadline
        name = f"full {len(kept)}"
        answer = save(api, name, lora_target_modules=words)
        if answer.status_code == 200:
            kept.append(name)
        else:
            told.add(refused(answer))
    for _ in range(5):
        refused(save(api, "more", lora_target_modules=words))
    assert any("no space left on its disk" in text for text in told)
    ballast.unlink()
    wait_until(lambda: save(api, "after a full disk").status_code == 200, 60)
    assert sorted(list_names(api)) == sorted([*before, *kept, "after a full disk"])
