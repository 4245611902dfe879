"""Disks of the database and of uploads that are full, or read-only: each request gets a sentence, nobody gets in."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
from sqlalchemy import create_engine, text
from sqlalchemy.exc import DBAPIError

from jobs.clients.keys import KeyScope, create_key
from jobs.project import PROJECT_ROOT
from jobs.stack import postgres
from jobs.stack.database_urls import local_url
from jobs.stack.process_manager import make_run_folder, plain_home
from jobs.storage.schema import migrate
from tests.attack.case import CannotRun, Finding, Harm, Target, case
from tests.attack.file_uploads import BEGIN, begin, complete, put
from tests.attack.processes import another_api
from tests.attack.uploads import announce, find_leftovers, make_rows, send
from tests.chaos.run import wait_until
from tests.e2e.api_process import ApiProcess

SIZE = "160m"
UPLOADS_BYTES = 100 * 2**20  # of which 64 MiB stay free beside a file whose size is known
UPLOADS_SIZE = f"{UPLOADS_BYTES}"
BODY = {"config": {"base_model": "tiny/llama", "lora_target_modules": ["q" * 200] * 900}}  # 180 KB
TRIES = 40
SECONDS = 8.0  # for an answer, of whatever kind
BACK_SECONDS = 45.0  # a database that has crashed reads its log first


class Database:
    """A PostgreSQL server with its cluster in `home`, which may die and be started again, as supervisord does it."""

    def __init__(self, home: Path) -> None:
        make_run_folder(home)
        self.data = plain_home(home) / "postgres"
        self.folder = home / "postgres"
        postgres.prepare_cluster(self.data)
        self._process: subprocess.Popen[bytes] | None = None
        self.keep_up()
        postgres.ensure_databases(local_url(self.data, "postgres"), ["tuneyard"])
        self.url = local_url(self.data, "tuneyard")

    def keep_up(self) -> None:
        """Start it if it does not run, and wait until it answers."""
        if self._process is None or self._process.poll() is not None:
            environment = os.environ | {"PYTHONPATH": str(PROJECT_ROOT)}
            command = postgres.server_command(self.data)
            self._process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
        url = local_url(self.data, "postgres")
        wait_until(lambda: postgres.is_ready(url), time.monotonic() + BACK_SECONDS)

    def close(self) -> None:
        """Stop it."""
        assert self._process is not None
        self._process.send_signal(signal.SIGINT)
        self._process.wait(30)


@case
def a_database_without_room_or_rights_is_a_sentence(target: Target) -> Iterator[Finding]:
    """Its folder is full, then read-only. Reads and keys work on where they can, and all does once there is room."""
    home = target.folder / "small-disk"
    with mounted(home, SIZE):
        database = Database(home)
        try:
            migrate(database.url)
            engine = create_engine(database.url)
            key = create_key(engine, "attack", KeyScope.SUBMIT)[1]
            with another_api(target, **_environment(target, database)) as other:
                for what in (full_disk, read_only_folder):
                    with what(database, home):
                        yield from _use(other, key, what.__name__)
                    yield from _is_back(other, key, database, what.__name__)
            engine.dispose()
        finally:
            database.close()


@case
def a_full_disk_loses_no_upload(target: Target) -> Iterator[Finding]:
    """That of the state folder: what does not fit is refused with a sentence, what was there stays, nothing is left."""
    home, settings = target.folder / "small-home", target.service.settings
    servers = {
        "TUNEYARD_HOME": str(home),
        "TUNEYARD_DATABASE_URL": str(settings.database_url),
        "PREFECT_API_URL": str(settings.prefect_api_url),
        "MLFLOW_TRACKING_URI": str(settings.mlflow_tracking_uri),
    }
    with mounted(home, UPLOADS_SIZE, 0o700), another_api(target, **servers) as other:
        client = httpx.Client(
            base_url=other.client.base_url, headers={"Authorization": f"Bearer {target.keys['submit']}"}, timeout=60
        )
        with client:
            kept = make_rows("kept")
            added = send(client, "kept.jsonl", kept)
            if not added.is_success:
                yield Finding(Harm.STARVED, f"a file on an empty disk: {added.status_code} {added.text[:200]}")
                return
            upload = client.post("/datasets/uploads", json={"filename": "parts.jsonl", "bytes": len(kept)}).json()
            part = f"/datasets/uploads/{upload['upload_id']}/parts/1"
            place = begin(client, "of-openai", len(kept))
            first, rest = kept[:100], kept[100:]
            ids = [put(client, place, first).json()["id"]]
            yield from _overfill(client, home)
            filler = fill(home)
            for answer in (
                send(client, "full.jsonl", make_rows("full")),
                client.post("/v1/files", files={"file": ("full.jsonl", kept)}, data={"purpose": "fine-tune"}),
                client.post("/datasets/uploads", json={"filename": "full.jsonl", "bytes": len(kept)}),
                client.put(part, content=kept),
                client.post("/v1/uploads", json=BEGIN | {"filename": "full.jsonl", "bytes": len(kept)}),
                put(client, place, rest),
                client.post("/models", json=announce("attack/full")),
            ):
                if answer.status_code != httpx.codes.INSUFFICIENT_STORAGE or "disk_full" not in answer.text:
                    yield Finding(Harm.STARVED, f"{answer.request.url}: {answer.status_code} {answer.text[:200]}")
            for path in ("/health", "/queue", "/datasets", "/datasets/kept/content"):
                if not (answer := client.get(path)).is_success:
                    yield Finding(Harm.STARVED, f"{path} beside a full disk: {answer.status_code} {answer.text[:200]}")
            filler.unlink()
            client.put(part, content=kept)
            ids.append(put(client, place, rest).json()["id"])
            for answer in (
                send(client, "full.jsonl", make_rows("full")),
                client.post(f"{part[:-8]}/complete"),
                complete(client, place, ids, kept),
            ):
                if not answer.is_success:
                    yield Finding(Harm.UNSETTLED, f"once there is room: {answer.status_code} {answer.text[:200]}")
            for name, content in {"kept": kept, "full": make_rows("full"), "parts": kept, "of-openai": kept}.items():
                if client.get(f"/datasets/{name}/content").content != content:
                    yield Finding(Harm.UNSETTLED, f"{name} is another file, or lost")
            names = {one["name"] for one in client.get("/datasets").json()}
            if names != {"kept", "full", "parts", "of-openai"}:
                yield Finding(Harm.UNSETTLED, f"the datasets are {names}")
            yield from find_leftovers(home)


def _overfill(client: httpx.Client, home: Path) -> Iterator[Finding]:
    """Files larger than the disk, one that says so and one that does not."""
    rows = make_rows("large", 1000)

    def stream() -> Iterator[bytes]:
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="large.jsonl"\r\n\r\n'
        for _ in range(2 * UPLOADS_BYTES // len(rows)):
            yield rows
        yield b"\r\n--b--\r\n"

    with suppress(httpx.WriteError, httpx.ReadError):  # the response may come before the body is sent
        answer = client.post("/datasets", content=stream(), headers={"Content-Type": "multipart/form-data; boundary=b"})
        if answer.status_code != httpx.codes.INSUFFICIENT_STORAGE:
            yield Finding(Harm.STARVED, f"a file larger than the disk: {answer.status_code} {answer.text[:200]}")
    announced = client.post("/datasets/uploads", json={"filename": "large.jsonl", "bytes": 2 * UPLOADS_BYTES})
    if announced.status_code != httpx.codes.INSUFFICIENT_STORAGE:
        yield Finding(Harm.STARVED, f"an upload larger than the disk: {announced.status_code}")
    yield from find_leftovers(home, ["own-data/staging/*"])


def fill(home: Path) -> Path:
    """A file that takes what is free on this disk."""
    filler = home / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(2**16))
    return filler


@contextmanager
def mounted(folder: Path, size: str, mode: int = 0o755) -> Iterator[None]:
    """A file system of its own, of few megabytes. Raises CannotRun."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size},mode={mode:o}", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CannotRun(f"no small file system can be mounted here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], capture_output=True, check=False)


@contextmanager
def full_disk(database: Database, home: Path) -> Iterator[None]:
    """Not a byte is left on the database's file system."""
    filler = fill(home)
    try:
        yield
    finally:
        filler.unlink()


@contextmanager
def read_only_folder(database: Database, home: Path) -> Iterator[None]:
    """Nothing can be made in the database's folders, so that it can't go on to another segment of its log."""
    folders = [path for path in [database.folder, *database.folder.rglob("*")] if path.is_dir()]
    modes = {path: path.stat().st_mode for path in folders}
    for path in folders:
        path.chmod(0o500)
    engine = create_engine(database.url)
    try:
        with suppress(DBAPIError), engine.connect() as connection:
            for _ in range(4):
                connection.execute(text("SELECT pg_switch_wal()"))
                connection.execute(text("CREATE TABLE attack_nothing (x int)"))
                connection.execute(text("DROP TABLE attack_nothing"))
                connection.commit()
        yield
    finally:
        engine.dispose()
        for path, mode in modes.items():
            path.chmod(mode)


def _environment(target: Target, database: Database) -> dict[str, str]:
    settings = target.service.settings
    return {
        "TUNEYARD_HOME": str(target.folder / "small-disk-home"),
        "TUNEYARD_DATABASE_URL": database.url,
        "PREFECT_API_URL": str(settings.prefect_api_url),
        "MLFLOW_TRACKING_URI": str(settings.mlflow_tracking_uri),
    }


def _use(other: ApiProcess, key: str, what: str) -> Iterator[Finding]:
    headers = {"Authorization": f"Bearer {key}"}
    answers = []
    for number in range(TRIES):
        began = time.monotonic()
        answers.append(other.client.post("/api/sft/configs", json=BODY | {"name": f"{what}-{number}"}, headers=headers))
        if (seconds := time.monotonic() - began) > SECONDS:
            yield Finding(Harm.STARVED, f"{what}: an answer after {seconds:.1f} s")
        if not answers[-1].is_success and number > 3:
            break
    for answer in answers:
        if not answer.is_success and (answer.status_code not in (503, 507) or "code" not in answer.json()):
            yield Finding(Harm.STARVED, f"{what}: {answer.status_code} {answer.text[:300]}")
        if "Traceback" in answer.text or "INSERT" in answer.text:
            yield Finding(Harm.LEAKED, f"{what}: {answer.text[:300]}")
    if all(answer.is_success for answer in answers):
        raise CannotRun(f"{what}: the database wrote all the same")
    if (status := other.client.get("/health").status_code) != 200:
        yield Finding(Harm.STARVED, f"{what}: /health {status}")
    if (status := other.client.get("/api/sft/configs").status_code) not in (401, 503):
        yield Finding(Harm.OPENED, f"{what}: without a key {status}")
    if (status := other.client.get("/api/sft/configs?limit=1", headers=headers).status_code) not in (200, 503):
        yield Finding(Harm.STARVED, f"{what}: a read gets {status}")


def _is_back(other: ApiProcess, key: str, database: Database, what: str) -> Iterator[Finding]:
    end = time.monotonic() + BACK_SECONDS
    headers = {"Authorization": f"Bearer {key}"}
    while True:
        database.keep_up()  # it may have given up a moment ago
        body = BODY | {"name": f"after-{what}-{time.monotonic_ns()}"}
        answer = other.client.post("/api/sft/configs", json=body, headers=headers)
        if answer.is_success:
            return
        if time.monotonic() > end:
            yield Finding(Harm.UNSETTLED, f"after {what}: {answer.status_code} {answer.text[:300]}")
            return
        time.sleep(0.5)
