"""Models and files that would take all time or memory of the process that reads them, planned and trained."""

import gzip
import json
import os
import shutil
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from tests.attack.case import CannotRun, Finding, Harm, Target, case
from tests.chaos.service import MODEL

TEMPLATES = {
    "power": "{{ 9**(9**9) }}",
    "loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "joiner": "{% set c = joiner(',') %}{% for i in range(99999) %}{% for j in range(99999) %}{{ c() }}{% endfor %}"
    "{% endfor %}",
    "long text": "{{ 'a' * 10**12 }}",
    "long list": "{{ ([1] * 10**12)|length }}",
    "range": "{{ range(10**9)|list|length }}",
    "recursion": "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}",
}
PATTERNS = (r"(.*)*(.*)*(.*)*x$", r"((\w|\.)+)+\d{9}", "(" * 5000 + ")" * 5000)
START_SECONDS = 90.0  # until the first plan: the planner loads the training libraries
PLAN_SECONDS = 30.0  # until a plan is answered, one way or the other
GONE_SECONDS = 10.0  # for a plan's process to follow its client
ROWS = [{"messages": [{"role": "user", "content": "Say one."}, {"role": "assistant", "content": "It is one."}]}] * 4


def write_page(path: Path) -> None:
    """Parquet of some kilobytes: one value of a megabyte that stands in each of 2,000 rows."""
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 2000, pa.int32()), pa.array(["a" * 2**20]))
    pq.write_table(pa.table({"text": column}), path, compression="zstd")


def write_rows_of_nothing(path: Path) -> None:
    """Parquet of some kilobytes that claims fifty million rows without a value."""
    pq.write_table(pa.table({"text": pa.nulls(50_000_000, pa.string())}), path, compression="zstd")


def write_zip(path: Path) -> None:
    """An archive of megabytes that unpacks to gigabytes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("rows.jsonl", "w") as member:
        for _ in range(256):
            member.write(bytes(2**20))


FILES: dict[str, Callable[[Path], object]] = {
    "page.parquet": write_page,
    "nothing.parquet": write_rows_of_nothing,
    "bomb.jsonl.gz": lambda path: path.write_bytes(gzip.compress(bytes(2**28), 1)),
    "bomb.zip": write_zip,
    "zip.jsonl": write_zip,
    "nested.json": lambda path: path.write_text("[" * 100_000 + "]" * 100_000, encoding="utf-8"),
    "nested.jsonl": lambda path: path.write_text('{"text": ' + "[" * 100_000 + "]" * 100_000 + "}", encoding="utf-8"),
    "one-line.jsonl": lambda path: os.truncate(path, 2**31),  # takes no room on the disk
}


@dataclass(frozen=True)
class Answers:
    """Plans asked for, those without an answer in time, those answered as the service's fault, and processes left."""

    asked: int
    unsettled: int
    faults: int
    left: int
    slowest_seconds: float


@dataclass(frozen=True)
class JobEnd:
    """How a job ended that reads something without end; no status if it has not in time."""

    status: str | None
    error_code: str | None
    error: str | None
    attempt: int | None = None


@case
def plans_of_programs_without_end_end(target: Target) -> Iterator[Finding]:
    """Templates and patterns that take all time or memory: one sentence for each, and no process is left."""
    yield from _judge(target, TEMPLATES, {})


@case
def plans_of_files_without_end_end(target: Target) -> Iterator[Finding]:
    """Bombs of Parquet and archives, endless lines, endless nesting: the same."""
    yield from _judge(target, {}, FILES)


def _start_planner(target: Target, headers: Mapping[str, str]) -> None:
    rows = _write_rows(target.service.settings.home)
    body = {"base_model": MODEL, "dataset_name": rows.name, "template_name": "chatml"}
    if (status := _ask(target.url, body, headers, START_SECONDS)) != httpx.codes.OK:
        raise CannotRun(f"an ordinary plan: {status}")


def _judge(
    target: Target, templates: Mapping[str, str], files: Mapping[str, Callable[[Path], object]]
) -> Iterator[Finding]:
    home, headers = target.service.settings.home, {"Authorization": f"Bearer {target.keys['submit']}"}
    _start_planner(target, headers)
    found = plan_without_end(target.url, home, MODEL, headers, PLAN_SECONDS, target.deadline, templates, files)
    if found.unsettled or found.left:
        yield Finding(Harm.UNSETTLED, f"plans: {found}")
    if found.faults:
        yield Finding(Harm.STARVED, f"plans: {found}")


@case
def a_job_that_reads_without_end_ends_by_itself(target: Target) -> Iterator[Finding]:
    """At its first attempt, with a code that says why."""
    headers = {"Authorization": f"Bearer {target.keys['submit']}"}
    end = train_without_end(target.url, target.service.settings.home, MODEL, headers, 90)
    if end.status is None:
        yield Finding(Harm.UNSETTLED, "the job goes on for ever")
    elif (end.status, end.error_code, end.attempt) != ("failed", "resource_limit", 1):
        yield Finding(Harm.UNSETTLED, f"the job ended as {end}")


@case
def weights_that_lie_are_refused_unread(target: Target) -> Iterator[Finding]:
    """Headers that claim 2^62 bytes, or a tensor of exabytes: in a plan, and when a job is submitted."""
    home = target.service.settings.home
    tensor = {"dtype": "F32", "shape": [2**31, 2**31], "data_offsets": [0, 2**64]}
    headers = {
        "a length of 2^62": (2**62).to_bytes(8, "little"),
        "a length of all that can be": b"\xff" * 8,
        "a tensor of exabytes": _pack({"model.embed_tokens.weight": tensor}),
        "offsets that run back": _pack({"model.embed_tokens.weight": tensor | {"data_offsets": [2**62, 0]}}),
    }
    rows = _write_rows(home)
    copy, folder = copy_model(home, MODEL, "lies", TEMPLATES["power"])
    try:
        with target.client() as client:
            for what, content in headers.items():
                (folder / "model.safetensors").write_bytes(content)
                config = {"base_model": copy, "dataset_name": rows.name, "dataset_format": "chat"}
                for path in ("/api/sft/plan", "/api/sft/train?strict=true"):
                    began = time.monotonic()
                    answer = client.post(path, json={"config": config | {"template_name": "chatml"}})
                    seconds = time.monotonic() - began
                    if "model_unusable" not in answer.text or answer.status_code >= 500 or seconds > PLAN_SECONDS / 2:
                        shown = f"{answer.status_code} {answer.text[:200]} after {seconds:.1f} s"
                        yield Finding(Harm.STARVED, f"{what}, {path}: {shown}")
    finally:
        rows.unlink()
        shutil.rmtree(folder)


def _pack(header: dict[str, Any]) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text


@case
def a_plan_ends_with_its_client(target: Target) -> Iterator[Finding]:
    """Who asks for a plan without end and hangs up leaves nothing that runs."""
    home, headers = target.service.settings.home, {"Authorization": f"Bearer {target.keys['submit']}"}
    _start_planner(target, headers)
    rows = _write_rows(home)
    copy, folder = copy_model(home, MODEL, "gone", TEMPLATES["power"])
    try:
        for _ in range(3):
            if (status := _ask(target.url, {"base_model": copy, "dataset_name": rows.name}, headers, 1.5)) is not None:
                raise CannotRun(f"the plan was answered before its client was gone: {status}")
        end = time.monotonic() + GONE_SECONDS
        while (left := count_busy_plans()) and time.monotonic() < end:
            time.sleep(0.2)
        if left:
            yield Finding(Harm.UNSETTLED, f"{left} plans of clients that are gone")
    finally:
        rows.unlink()
        shutil.rmtree(folder)


def plan_without_end(
    url: str,
    home: Path,
    base_model: str,
    headers: Mapping[str, str] | None = None,
    within_seconds: float = PLAN_SECONDS,
    deadline: float = float("inf"),
    templates: Mapping[str, str] = TEMPLATES,
    files: Mapping[str, Callable[[Path], object]] = FILES,
) -> Answers:
    """Ask for a plan of each template, with them of each pattern, and of each file.

    Args:
        home: the service's state folder, in which the models and files are made and removed again.
        base_model: a small model below its model root.
        deadline: on the monotonic clock, after which no more are asked for.
    """
    bodies: list[dict[str, Any]] = []
    made = [_write_rows(home)]
    for name, template in templates.items():
        copy, folder = copy_model(home, base_model, name, template)
        bodies.append({"base_model": copy, "dataset_name": made[0].name})
        made.append(folder)
    bodies += [
        {"base_model": base_model, "dataset_name": made[0].name, "template_name": "chatml"}
        | {"lora_target_modules": [pattern]}
        for pattern in (PATTERNS if templates else ())
    ]
    for name, write in files.items():
        path = home / "data" / f"attack-{name}"
        path.touch()
        write(path)
        made.append(path)
        bodies.append({"base_model": base_model, "dataset_name": path.name, "template_name": "chatml"})
    statuses, seconds = [], []
    try:
        for body in bodies:
            began = time.monotonic()
            if began > deadline - within_seconds:
                raise TimeoutError(f"{len(statuses)} of {len(bodies)} plans were made in time: {seconds}")
            statuses.append(_ask(url, body, headers, within_seconds))
            seconds.append(time.monotonic() - began)
        left = count_busy_plans()
    finally:
        for path in made:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    faults = sum(status is not None and status >= httpx.codes.INTERNAL_SERVER_ERROR for status in statuses)
    return Answers(len(statuses), statuses.count(None), faults, left, max(seconds))


def train_without_end(
    url: str, home: Path, base_model: str, headers: Mapping[str, str] | None = None, within_seconds: float = 120
) -> JobEnd:
    """Submit a job whose chat template never ends, and wait for it to have failed: `resource_limit`."""
    rows = _write_rows(home)
    copy, folder = copy_model(home, base_model, "job", TEMPLATES["power"])
    config = {"base_model": copy, "dataset_name": rows.name, "dataset_format": "chat", "template_name": "auto"}
    try:
        with httpx.Client(base_url=f"{url}/api/sft", headers=dict(headers or {}), timeout=30) as client:
            job_id = client.post("/train", json={"config": config}).raise_for_status().json()["job_id"]
            deadline = time.monotonic() + within_seconds
            while time.monotonic() < deadline:
                job = client.get(f"/jobs/{job_id}").raise_for_status().json()
                if job["status"] in ("failed", "completed", "stopped"):
                    return JobEnd(job["status"], job.get("error_code"), job["error"], job.get("attempt"))
                time.sleep(0.5)
        return JobEnd(None, None, None)
    finally:
        rows.unlink()
        shutil.rmtree(folder)


def copy_model(home: Path, base_model: str, name: str, template: str) -> tuple[str, Path]:
    """A copy of a model with another chat template: its name and folder."""
    copy = f"attack/{name.replace(' ', '-')}"
    folder = home / "models" / copy
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(home / "models" / base_model, folder)
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return copy, folder


def count_busy_plans() -> int:
    """Processes on this machine that still make a plan: children of planner processes."""
    count = 0
    for process in psutil.process_iter():
        try:
            if "tasks.plan" in process.cmdline() and "tasks.plan" in process.parent().cmdline():  # type: ignore[union-attr]
                count += process.status() != psutil.STATUS_ZOMBIE
        except (psutil.Error, AttributeError):
            continue
    return count


def _write_rows(home: Path) -> Path:
    path = home / "data" / "attack-rows.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(map(json.dumps, ROWS)), encoding="utf-8")
    return path


def _ask(url: str, body: dict[str, Any], headers: Mapping[str, str] | None, within_seconds: float) -> int | None:
    config = {"dataset_format": "chat", "template_name": "auto"} | body
    try:
        answer = httpx.post(
            f"{url}/api/sft/plan", json={"config": config}, headers=dict(headers or {}), timeout=within_seconds
        )
    except httpx.TransportError:
        return None
    return answer.status_code
