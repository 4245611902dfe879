"""Scripts in every text a client can set, kept in Prefect and MLflow, and their pages opened in a real browser."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest

from tests.attack.case import CannotRun, Finding, Harm, Target, case
from tests.browser import find_browser, hosts_asked_by
from tests.chaos.clients import SMALL

PAGE_SECONDS = 4.0  # of the browser's own time, which runs ahead
PLACES = ("run", "dataset", "wandb", "metadata")
NAME = "scripts"  # of the adapter: letters only are taken


class Canary:
    """Hears the paths that scripts ask for. Answers every page, so that the browser is sent back for no reason."""

    def __init__(self, page: str = "") -> None:
        self.heard: list[str] = []
        canary = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path != "/":
                    canary.heard.append(self.path)
                self.send_response(200)
                self.send_header("Content-Type", "text/html")
                self.send_header("Access-Control-Allow-Origin", "*")
                self.end_headers()
                self.wfile.write(page.replace("PORT", str(canary.port)).encode())

            def log_message(self, *_arguments: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_port
        self.url = f"http://127.0.0.1:{self.port}/"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@contextmanager
def listening(page: str = "") -> Iterator[Canary]:
    """A canary as long as the block lasts."""
    canary = Canary(page)
    try:
        yield canary
    finally:
        canary.close()


def write_scripts(port: int | str, where: str) -> list[str]:
    """Texts of at most 120 characters that call the canary from tags, attributes, templates or Markdown."""
    call = f"fetch(`//127.0.0.1:{port}/{where}`)"
    return [
        f"'\"></title></textarea></script><script>{call}</script>",
        f"'\"><img src=x onerror={call}><svg onload={call}>",
        f"<details open ontoggle={call}><iframe srcdoc='<script>{call}</script>'>",
        f"{{{{constructor.constructor('{call}')()}}}}${{{call}}}",
        f'[x](javascript:{call})![x](x"onerror="{call})',
    ]


@case
def scripts_in_names_do_not_run_in_the_pages_of_prefect_and_mlflow(target: Target) -> Iterator[Finding]:
    """A job whose every text is one, run to its end."""
    try:
        find_browser()
    except pytest.skip.Exception as error:
        raise CannotRun(str(error)) from error
    with listening("".join(write_scripts("PORT", "control"))) as control:
        hosts_asked_by(control.url, 2)
        if "/control" not in control.heard:
            raise CannotRun("the browser does not run the scripts of a page that is made of them")
    with listening() as canary, target.client() as client:
        run, dataset, wandb, texts = (write_scripts(canary.port, place) for place in PLACES)
        body = SMALL | {
            "lora_name": NAME, "max_steps": 1, "run_name": run[0] + run[1], "wandb_project": wandb[0],
            "metadata": {f"text{number}": text for number, text in enumerate(texts)},
        }  # fmt: skip
        posted = client.post("/train", json=body)
        failing = client.post("/train", json=body | {"dataset_version": dataset[1]})
        if posted.status_code != 200:
            raise CannotRun(f"the job was not taken: {posted.text[:300]}")
        jobs = [answer.json()["job_id"] for answer in (posted, failing) if answer.status_code == 200]
        for job_id in jobs:
            while client.get(f"/train/{job_id}").json()["status"] in ("queued", "running"):
                if time.monotonic() > target.deadline - 45:
                    raise CannotRun("the job has not ended in time")
                time.sleep(0.5)
        for page in list_pages(target, jobs):
            if time.monotonic() > target.deadline - 8:
                break
            _, shown = hosts_asked_by(page, PAGE_SECONDS)
            if len(shown) < 500:
                raise CannotRun(f"{page} showed nothing: {shown!r}")
        for path in sorted({path for path in canary.heard if path.strip("/") in PLACES}):
            yield Finding(Harm.ESCAPED, f"the script of {path} ran")


def list_pages(target: Target, jobs: list[str]) -> Iterator[str]:
    """Where a person would see the texts."""
    settings = target.service.settings
    prefect, mlflow = str(settings.prefect_api_url).removesuffix("/api"), str(settings.mlflow_tracking_uri)
    yield f"{prefect}/runs"
    yield from (f"{prefect}/runs/flow-run/{job_id}" for job_id in jobs)
    yield f"{prefect}/runs/flow-run/{jobs[0]}?tab=Parameters"
    found = httpx.post(
        f"{mlflow}/api/2.0/mlflow/runs/search", json={"experiment_ids": _experiments(mlflow)}, timeout=20
    )
    for run in found.json().get("runs", [])[:1]:
        info = run["info"]
        yield f"{mlflow}/#/experiments/{info['experiment_id']}"
        yield f"{mlflow}/#/experiments/{info['experiment_id']}/runs/{info['run_id']}"
    yield f"{mlflow}/#/models/{NAME}/versions/1"


def _experiments(mlflow: str) -> list[str]:
    answer = httpx.post(f"{mlflow}/api/2.0/mlflow/experiments/search", json={"max_results": 10}, timeout=20)
    return [experiment["experiment_id"] for experiment in answer.json()["experiments"]]
