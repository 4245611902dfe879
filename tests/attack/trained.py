"""A job that has completed, and attacks on what it has left: files that are swapped, tables, texts in its name."""

import csv
import itertools
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tests.attack.case import CannotRun, Finding, Harm, Target, case
from tests.chaos.clients import SMALL

SECRET = b"attack-secret-of-another-folder"
DOWNLOADS = 60
TRICKS = "\x1b[2J\r\nINFO forged \u202egnirts\u2066\u0085\u2028\x07"
RAW = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def train_one(target: Target) -> dict[str, Any]:
    """The status of a completed job of one step, the same one for all cases. Raises CannotRun."""
    if "small" not in target.jobs:
        body = SMALL | {
            "lora_name": "attacked", "max_steps": 1, "run_name": '=HYPERLINK("http://127.0.0.1")',
            "metadata": {"note": "@SUM(1)", "other": "+1"}, "wandb_project": "-1+1",
        }  # fmt: skip
        with target.client() as client:
            job_id = client.post("/train", json=body).raise_for_status().json()["job_id"]
            job = wait_for(target, job_id)
        if job["status"] != "completed":
            raise CannotRun(f"an ordinary job has not completed: {job}")
        target.jobs["small"] = job
    return target.jobs["small"]


def wait_for(target: Target, job_id: str, before_seconds: float = 5) -> dict[str, Any]:
    """The job's status once it has ended. Raises CannotRun so long before the deadline."""
    with target.client() as client:
        while True:
            job: dict[str, Any] = client.get(f"/train/{job_id}").raise_for_status().json()
            if job["status"] not in ("queued", "running"):
                return job
            if time.monotonic() > target.deadline - before_seconds:
                raise CannotRun(f"job {job_id} has not ended in time: {job}")
            time.sleep(0.5)


@case
def a_link_that_is_swapped_in_is_not_followed(target: Target) -> Iterator[Finding]:
    """Files of an adapter turn into links to somebody's secret and back, as fast as it goes, while it is downloaded."""
    job = train_one(target)
    secret = target.folder / "secret"
    secret.write_bytes(SECRET * 1000)
    adapter = Path(job["output_path"])
    names = [path.name for path in adapter.iterdir() if path.is_file()]
    answers = 0
    with target.client("read") as client, swapping(adapter, names, secret):
        for _ in range(DOWNLOADS):
            answer = client.get(f"/train/{job['job_id']}/adapter")
            answers += answer.status_code == 200
            if SECRET in answer.content:
                yield Finding(Harm.LEAKED, f"a download held what a link led to: {answer.status_code}")
            if answer.status_code >= 500 and answer.status_code != 503:
                yield Finding(Harm.STARVED, f"a download while files change: {answer.status_code} {answer.text[:200]}")
    with target.client("read") as client:
        if (answer := client.get(f"/train/{job['job_id']}/adapter")).status_code != 200 or SECRET in answer.content:
            yield Finding(Harm.STARVED, f"the adapter afterwards: {answer.status_code}")


@contextmanager
def swapping(folder: Path, names: list[str], secret: Path) -> Iterator[None]:
    """Each of these files is now itself, now a link to `secret`."""
    is_over = threading.Event()
    away = folder.with_name(f"{folder.name}.away")
    away.mkdir()
    for name in names:
        os.link(folder / name, away / name)

    def swap() -> None:
        for number, name in enumerate(itertools.cycle(names)):
            new = away / "new"
            if number // len(names) % 2:
                os.link(away / name, new)
            else:
                new.symlink_to(secret)
            new.replace(folder / name)
            new.unlink(missing_ok=True)  # a link to the same file is left where it is
            if is_over.wait(0.002) and number // len(names) % 2:
                break

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
        for name in names:
            (away / name).replace(folder / name)
            (away / name).unlink(missing_ok=True)
        away.rmdir()


@case
def tables_hold_no_formula(target: Target) -> Iterator[Finding]:
    """Of a job whose every text begins as one does."""
    job = train_one(target)
    with target.client() as client:
        answer = client.get(f"/train/{job['job_id']}/metrics", params={"format": "csv"}).raise_for_status()
    head, *rows = csv.reader(answer.text.splitlines())
    if not rows:
        raise CannotRun(f"the job has no metrics: {answer.text!r}")
    words = [cell for cell in head if not cell.replace("_", "").isalpha()]
    cells = [cell for row in rows for cell in row if cell and not re.fullmatch(r"-?[0-9][0-9.e+-]*", cell)]
    if words or cells:
        yield Finding(Harm.ESCAPED, f"cells that a table may run: {[*words, *cells][:5]}")


@case
def texts_write_no_lines_and_move_no_cursor(target: Target) -> Iterator[Finding]:
    """In logs, and in what the command line prints."""
    settings = target.service.settings
    environment = os.environ | {"TUNEYARD_API_KEY": target.keys["submit"], "TUNEYARD_URL": target.url}
    with target.client() as client:
        for field in ("run_name", "model_name", "dataset_version", "lora_name", "template", "wandb_project"):
            client.post("/train", json=SMALL | {"max_steps": 1, field: f"x{TRICKS}"})
        client.post("/train", json=SMALL | {"max_steps": 1, "metadata": {f"k{TRICKS}": f"v{TRICKS}"}})
        client.get(f"/train/{quote(TRICKS)}")
        client.get("/train", params={"id_prefix": TRICKS, TRICKS: "x"}, headers={"User-Agent": "x\x1b[2J"})
        jobs = [job["job_id"] for job in client.get("/train", params={"limit": 20}).json()]
        command = [sys.executable, "-m", "cli"]
        for words in (["list"], *(["show", job] for job in jobs[:2])):
            done = subprocess.run([*command, *words], env=environment, capture_output=True, text=True, check=False)
            if RAW.search(shown := done.stdout + done.stderr) or "\nINFO forged" in shown:
                yield Finding(Harm.ESCAPED, f"`tuneyard {words[0]}` prints {shown[:300]!r}")
        for job in jobs:
            client.delete(f"/train/{job}")
    for log in (target.folder.parent / "api.log", *(settings.home / "logs").glob("*.log")):
        text = log.read_text(encoding="utf-8", errors="replace")
        if (found := RAW.search(text)) or "\nINFO forged" in text:
            place = found.start() if found else text.index("\nINFO forged")
            yield Finding(Harm.ESCAPED, f"{log.name} holds {text[max(0, place - 80) : place + 80]!r}")
