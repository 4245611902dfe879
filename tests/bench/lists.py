"""`python -m tests.bench.lists`: the unpaged lists of a long history. The last line is one JSON object.

Puts 50,000 ended jobs into the databases of a stack of its own, by SQL, and reads `GET /train` and `GET /api/sft/jobs`
whole: seconds, bytes, and how much the API's memory grows meanwhile. The baseline of the same run is Prefect's own API,
asked for the same runs by pages.
"""

import argparse
import json
import re
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path

import httpx
import psutil
from sqlalchemy import Connection, create_engine, text

from jobs.settings import Settings
from jobs.stack.database_urls import sibling_url
from jobs.vocabulary import PAGE_SIZE
from tests.live_service import pause_jobs, running_service

BODY = {"model_name": "nobody/nothing", "dataset_version": "v1.0", "max_steps": 1}
PATHS = {"train": "/train", "sft": "/api/sft/jobs"}
SAMPLE_SECONDS = 0.05
MB = 1e6


def main() -> None:
    """Fill the history, read the lists and print the figures."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--jobs", type=int, default=50_000, help="jobs in the history")
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory(prefix="tuneyard-bench-") as folder, running_service(Path(folder)) as (up, url):
        fill_history(up, url, options.jobs)
        print(json.dumps({"jobs": options.jobs} | measure(up, url)))


def measure(settings: Settings, url: str) -> dict[str, float]:
    """Read each list whole; seconds, megabytes, jobs and growth of the API's memory, by list."""
    process = find_api(settings)
    figures: dict[str, float] = {"prefect_seconds": round(read_in_prefect(settings), 1)}
    for name, path in PATHS.items():
        httpx.get(f"{url}{path}", params={"limit": 200}, timeout=60).raise_for_status()  # opens connections and caches
        with watch_memory(process) as growth:
            began = time.perf_counter()
            body = httpx.get(f"{url}{path}", timeout=600).raise_for_status().content
            seconds = time.perf_counter() - began
        ids = re.findall(rb'"job_id":"([0-9a-f-]{36})"', body)
        figures |= {
            f"{name}_seconds": round(seconds, 1),
            f"{name}_mb": round(len(body) / MB, 1),
            f"{name}_jobs": len(ids),
            f"{name}_doubled": len(ids) - len({*ids}),
            f"{name}_growth_mb": round(growth[0] / MB, 1),
        }
    return figures


def read_in_prefect(settings: Settings) -> float:
    """Seconds to read all runs from Prefect, page by page, newest first."""
    began, before = time.perf_counter(), "2099-01-01T00:00:00Z"
    with httpx.Client(base_url=str(settings.prefect_api_url), timeout=60) as prefect:
        while True:
            wanted = {"flow_runs": {"expected_start_time": {"before_": before}}, "sort": "EXPECTED_START_TIME_DESC"}
            page = prefect.post("/flow_runs/filter", json=wanted | {"limit": PAGE_SIZE}).raise_for_status().json()
            if len(page) < PAGE_SIZE:
                return time.perf_counter() - began
            last = datetime.fromisoformat(page[-1]["expected_start_time"])
            before = (last - timedelta(microseconds=1)).isoformat()


def find_api(settings: Settings) -> psutil.Process:
    """The API's process."""
    port = ["--port", str(settings.api_port)]
    return next(process for process in psutil.Process().children() if process.cmdline()[-2:] == port)


@contextmanager
def watch_memory(process: psutil.Process) -> Iterator[list[float]]:
    """Yield a list whose only item is by how many bytes the process's memory has grown at most."""
    before, grown, is_over = process.memory_info().rss, [0.0], threading.Event()

    def watch() -> None:
        while not is_over.wait(SAMPLE_SECONDS):
            grown[0] = max(grown[0], process.memory_info().rss - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield grown
    finally:
        is_over.set()
        watcher.join()


def fill_history(settings: Settings, url: str, jobs: int) -> None:
    """Make one job and cancel it; add copies of it, a second apart, until there are so many."""
    pause_jobs(settings)
    job_id = httpx.post(f"{url}/train", json=BODY, timeout=60).raise_for_status().json()["job_id"]
    httpx.delete(f"{url}/train/{job_id}", timeout=60).raise_for_status()
    ours = create_engine(str(settings.database_url))
    theirs = create_engine(sibling_url(str(settings.database_url), "prefect"))
    with theirs.begin() as prefect, ours.begin() as tuneyard:
        _copy_runs(prefect, job_id, jobs - 1)
        _copy_reports(tuneyard, job_id, jobs - 1)
    with theirs.connect().execution_options(isolation_level="AUTOCOMMIT") as prefect:
        prefect.execute(text("ANALYZE"))


def _copy_runs(prefect: Connection, job_id: str, copies: int) -> None:
    """Copies have ids made from their number, and their state's from that of the run."""
    new = {"id": "md5('run' || n)::uuid", "state_id": "NULL", "idempotency_key": "'copy-' || n"}
    new |= {column: f"{column} - n * interval '1 s'" for column in ("created", "expected_start_time", "end_time")}
    _copy(prefect, "flow_run", new, "id = :job_id", job_id, copies)
    states = {"id": "md5('statecopy-' || n)::uuid", "flow_run_id": "md5('run' || n)::uuid"}
    of_run = "id = (SELECT state_id FROM flow_run WHERE id = :job_id)"
    _copy(prefect, "flow_run_state", states, of_run, job_id, copies)
    state_of = "UPDATE flow_run SET state_id = md5('state' || idempotency_key)::uuid"
    prefect.execute(text(f"{state_of} WHERE idempotency_key LIKE 'copy-%'"))


def _copy_reports(tuneyard: Connection, job_id: str, copies: int) -> None:
    new = {"job_id": "md5('run' || n)::uuid", "ended_at": "ended_at - n * interval '1 s'"}
    _copy(tuneyard, "job_reports", new, "job_id = :job_id", job_id, copies)


def _copy(connection: Connection, table: str, new: dict[str, str], where: str, job_id: str, copies: int) -> None:
    """Insert copies of a row, numbered `n` from 1, with these values by column."""
    found = connection.execute(
        text("SELECT column_name FROM information_schema.columns WHERE table_name = :table AND is_generated = 'NEVER'"),
        {"table": table},
    )
    columns = [f'"{name}"' for (name,) in found]
    values = [new.get(name.strip('"'), name) for name in columns]
    connection.execute(
        text(
            f"INSERT INTO {table} ({', '.join(columns)}) SELECT {', '.join(values)} "  # noqa: S608 - names of columns
            f"FROM {table}, generate_series(1, :copies) AS n WHERE {where}"
        ),
        {"job_id": job_id, "copies": copies},
    )


if __name__ == "__main__":
    main()
