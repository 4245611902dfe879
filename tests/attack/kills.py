"""kill -9 in the middle of what must be whole: a fetch, a registry, a key, a migration."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from uuid import uuid4

import psutil
from sqlalchemy import create_engine, inspect, text

from jobs.clients.keys import ApiKeyCache, list_keys, read_snapshot
from jobs.project import PROJECT_ROOT
from jobs.settings import Settings
from jobs.stack.database_urls import sibling_url
from jobs.stack.postgres import ensure_databases
from jobs.storage.schema import known_revisions
from sft.files.publication import publish_folder
from tasks.dataset import resolve
from tasks.dataset_registry import build_registry, read_stamp
from tasks.dataset_store import MANIFEST
from tests.attack.case import Finding, Harm, Target, case
from tests.attack.processes import another_api
from tests.attack.trained import train_one
from tests.e2e.api_process import ApiProcess
from tuneyard_client import Tuneyard
from tuneyard_client.errors import ServiceUnreachable
from tuneyard_client.streams import AdapterArchive

GO = "print('go', flush=True)\n"
FETCH = "import sys\nfrom jobs.settings import Settings\nfrom tasks.dataset import resolve\n" + GO + (
    "resolve('handbook@v1.0', Settings(home=sys.argv[1], dataset_registry=sys.argv[2]))"
)  # fmt: skip
BUILD = "import sys\nfrom pathlib import Path\nfrom tasks.dataset_registry import build_registry\n" + GO + (
    "build_registry(Path(sys.argv[1]))"
)  # fmt: skip
MIGRATE = (
    "import sys, alembic.command, alembic.config\nfrom jobs.storage.schema import migrate\n"
    + GO
    + "migrate(sys.argv[1])"
)
MAKE_KEY = "import sys\nfrom sqlalchemy import create_engine\nfrom jobs.clients.keys import KeyScope, create_key\n"
MAKE_KEY += GO + (
    "while True: create_key(create_engine(sys.argv[1]), 'killed', KeyScope.ADMIN)"
)  # fmt: skip
PUBLISHED_FILES = 40
PUBLISH = "import sys\nfrom pathlib import Path\nfrom sft.files.publication import publish_folder\n" + GO + (
    "for number in range(10**6):\n"
    "    with publish_folder(Path(sys.argv[1])) as folder:\n"
    f"        [(folder / str(n)).write_text(str(number)) for n in range({PUBLISHED_FILES})]"
)  # fmt: skip
DOWNLOAD_BYTES = 2**28


def kill_midway(
    code: str, *arguments: object, after_seconds: float = 0, once: Callable[[], bool] = lambda: True
) -> None:
    """Run this code in a process of its own and kill it so long after it begins, or after something has come to be."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    with subprocess.Popen(
        command, cwd=PROJECT_ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "go\n", code
        while process.poll() is None and not once():
            time.sleep(0.0005)
        time.sleep(after_seconds)
        process.kill()


@case
def a_dataset_that_was_killed_on_its_way_is_no_dataset(target: Target) -> Iterator[Finding]:
    """While the registry is built and published, and while a version is fetched from it: what is there is whole."""
    home = target.folder / "killed"
    for seconds in (0.3, 1.5, 4.0):
        kill_midway(BUILD, home, after_seconds=seconds)
        if (home / "registry").exists() and read_stamp(home / "registry") is None:
            yield Finding(Harm.ESCAPED, f"a registry stands in its place {seconds} s after its beginning, unfinished")
    registry = build_registry(home)  # beside what the children of those that were killed still do
    if left := [path.name for path in home.iterdir() if path.name.startswith("registry.") and path.is_dir()]:
        yield Finding(Harm.UNSETTLED, f"leftovers of a registry: {left}")
    settings = Settings(home=target.folder / "fetching", dataset_registry=str(registry))
    store = settings.home / "datasets"
    for seconds in (0, 0.002, 0.005, 0.01, 0.02):
        has_begun = partial(_has_other_folders, store, set(store.glob("*/")))
        kill_midway(FETCH, settings.home, registry, after_seconds=seconds, once=has_begun)
        shown = [path for path in store.glob("[!.]*") if path.is_dir()]
        if torn := [path for path in shown if not (path / MANIFEST).exists()]:
            yield Finding(Harm.ESCAPED, f"{seconds} s after its beginning a dataset is there that is none: {torn}")
    if resolve("handbook@v1.0", settings).rows < 1:
        yield Finding(Harm.UNSETTLED, "a dataset can't be fetched after its fetching was killed")
    if left := [path.name for path in store.glob(".*") if path.is_dir()]:
        yield Finding(Harm.UNSETTLED, f"leftovers of a fetch: {left}")


def _has_other_folders(store: Path, before: set[Path]) -> bool:
    return not set(store.glob("*/")) <= before


@case
def a_migration_that_was_killed_has_changed_nothing(target: Target) -> Iterator[Finding]:
    """A database is of the version from before or of the new one, and the next process brings it up to date."""
    for seconds in (0.02, 0.08, 0.15, 0.25):
        url = make_database(target, "schema")
        with at_work(url) as is_migrating:
            kill_midway(MIGRATE, url, after_seconds=seconds, once=is_migrating)
        engine = create_engine(url)
        tables = set(inspect(engine).get_table_names())
        if tables and "alembic_version" not in tables:
            yield Finding(Harm.ESCAPED, f"half a schema after {seconds} s: {sorted(tables)}")
        elif tables:
            with engine.connect() as connection:
                found = connection.execute(text("SELECT version_num FROM alembic_version")).scalars().all()
            if tuple(found) != known_revisions()[-1:]:
                yield Finding(Harm.ESCAPED, f"a schema of {found} with {sorted(tables)} after {seconds} s")
        done = subprocess.run([sys.executable, "-c", MIGRATE, url], cwd=PROJECT_ROOT, capture_output=True, check=False)
        if done.returncode:
            yield Finding(Harm.UNSETTLED, f"no migration after one that was killed: {done.stderr.decode()[-300:]}")
        engine.dispose()


@contextmanager
def at_work(url: str) -> Iterator[Callable[[], bool]]:
    """Tells whether somebody is making tables in this database."""
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    query = text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() "
        "AND query ~* 'CREATE (TABLE|INDEX)'"
    )
    with engine.connect() as connection:
        yield lambda: bool(connection.execute(query).scalar_one())
    engine.dispose()


@case
def a_key_whose_making_was_killed_opens_nothing(target: Target) -> Iterator[Finding]:
    """The first key closes the service, whether or not whoever made it lived to say so."""
    for seconds in (0.0, 0.02, 0.1):
        url, marker = make_database(target, "keys"), target.folder / f"marker-{uuid4().hex}"
        subprocess.run([sys.executable, "-c", MIGRATE, url], cwd=PROJECT_ROOT, capture_output=True, check=True)
        kill_midway(MAKE_KEY, url, after_seconds=seconds)
        engine = create_engine(url)
        keys = list_keys(engine)
        cache = ApiKeyCache(lambda engine=engine: read_snapshot(engine), marker)  # type: ignore[misc]
        if cache.refresh(None).is_open is not (not keys) or marker.exists() is not bool(keys):
            yield Finding(Harm.OPENED, f"{len(keys)} keys after {seconds} s, and the service is open")
        if torn := [key for key in keys if len(key.key_sha256) != 64 or key.scopes != ["admin"]]:
            yield Finding(Harm.ESCAPED, f"half a key: {torn}")
        engine.dispose()
    with target.client(None) as stranger, target.client("read") as keyed:
        before = keyed.get("/queue").status_code
        kill_commands(target, ("keys", "create", "killed", "--scope", "admin"), (0.8, 1.6))
        if (stranger.get("/queue").status_code, keyed.get("/queue").status_code) != (401, before):
            yield Finding(Harm.OPENED, "without a key after `tuneyard keys create` was killed")


def kill_commands(target: Target, words: Sequence[str], seconds: Sequence[float]) -> None:
    """Run a command on the state folder that is attacked, and kill it so long after its start."""
    for after in seconds:
        process = psutil.Popen(
            [sys.executable, "-m", "cli", *words],
            cwd=PROJECT_ROOT,
            env=own_environment(target),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(after)
        process.kill()
        process.wait()


def own_environment(target: Target) -> dict[str, str]:
    """That of a command on the state folder that is attacked."""
    return os.environ | {"TUNEYARD_HOME": str(target.service.settings.home)}


def make_database(target: Target, what: str) -> str:
    """URL of a new, empty database on the server that is attacked."""
    name = f"attack_{what}_{uuid4().hex[:12]}"
    url = str(target.service.settings.database_url)
    ensure_databases(url, [name])
    return sibling_url(url, name)


@case
def an_adapter_whose_publication_was_killed_is_whole_or_none(target: Target) -> Iterator[Finding]:
    """An adapter is put in the place of another one; what is left over goes with the next publication."""
    folder = target.folder / "published"
    for seconds in (0, 0.005, 0.01, 0.02, 0.05, 0.1):
        kill_midway(PUBLISH, folder / "adapter", after_seconds=seconds)
        numbers = {path.read_text() for path in (folder / "adapter").glob("*")}
        if len(numbers) > 1 or (numbers and len(list((folder / "adapter").iterdir())) < PUBLISHED_FILES):
            yield Finding(Harm.ESCAPED, f"half an adapter {seconds} s after the beginning: {sorted(numbers)}")
    with publish_folder(folder / "another") as fresh:
        (fresh / "file").touch()
    if left := [path.name for path in folder.iterdir() if path.name not in ("adapter", "another")]:
        yield Finding(Harm.UNSETTLED, f"leftovers of a publication: {left}")


@case
def a_download_that_was_killed_is_made_again(target: Target) -> Iterator[Finding]:
    """The API process that sends an adapter is killed, at its first bytes and later; another one sends it whole."""
    job = train_one(target)
    ballast = Path(job["output_path"]) / "ballast.bin"
    scratch = target.folder / "scratch-of-downloads"
    scratch.mkdir()
    try:
        with ballast.open("wb") as file:
            file.truncate(DOWNLOAD_BYTES)
        for number, least in enumerate((1, 2**20, 2**25)):
            place = target.folder / f"download-{number}"
            place.mkdir()
            with another_api(target, TMPDIR=str(scratch)) as api:
                yield from _cut_download(api, target.keys["read"], job["job_id"], place, least)
        place = target.folder / "download-whole"
        with Tuneyard(target.url, target.keys["read"]) as client:
            client.download_adapter(job["job_id"], place)
        if (place / ballast.name).stat().st_size != DOWNLOAD_BYTES:
            yield Finding(Harm.UNSETTLED, "the download after those that were cut off is not whole")
    finally:
        ballast.unlink(missing_ok=True)
    if left := [path.name for path in scratch.iterdir()]:
        yield Finding(Harm.UNSETTLED, f"leftovers of a download: {left}")


def _cut_download(api: ApiProcess, key: str, job_id: str, place: Path, least: int) -> Iterator[Finding]:
    """Kill the API once so many bytes have come."""
    come = 0

    def count(chunk: bytes) -> None:
        nonlocal come
        come += len(chunk)
        if come >= least:
            api.kill()

    try:
        with Tuneyard(str(api.client.base_url), key) as client, watching(count):
            client.download_adapter(job_id, place / "adapter")
    except ServiceUnreachable as error:
        if "cut off" not in str(error) or len(str(error).splitlines()) > 1:
            yield Finding(Harm.UNSETTLED, f"a download that was cut off is told as {error}")
    else:
        yield Finding(Harm.ESCAPED, f"an archive counts as whole after {come} bytes")
    if left := list(place.iterdir()):
        yield Finding(Harm.UNSETTLED, f"leftovers of a download: {left}")


@contextmanager
def watching(count: Callable[[bytes], None]) -> Iterator[None]:
    """Tell of each piece of an archive that has come."""
    write = AdapterArchive.write

    def tell(self: AdapterArchive, chunk: bytes) -> None:
        write(self, chunk)
        count(chunk)

    AdapterArchive.write = tell  # type: ignore[method-assign]
    try:
        yield
    finally:
        AdapterArchive.write = write  # type: ignore[method-assign]
