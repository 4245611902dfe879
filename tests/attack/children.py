"""Models and files that would take all time or memory of the process that reads them, planned and trained."""

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

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
ROWS = [{"messages": [{"role": "user", "content": "Say one."}, {"role": "assistant", "content": "It is one."}]}] * 4
FILES: dict[str, Callable[[Path], object]] = {
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


def plan_without_end(
    url: str, home: Path, base_model: str, headers: Mapping[str, str] | None = None, within_seconds: float = 60
) -> Answers:
    """Ask for a plan of each template, pattern and file.

    Args:
        home: the service's state folder, in which the models and files are made and removed again.
        base_model: a small model below its model root.
    """
    bodies: list[dict[str, Any]] = []
    made = [_write_rows(home)]
    for name, template in TEMPLATES.items():
        copy, folder = copy_model(home, base_model, name, template)
        bodies.append({"base_model": copy, "dataset_name": made[0].name})
        made.append(folder)
    bodies += [
        {"base_model": base_model, "dataset_name": made[0].name, "template_name": "chatml"}
        | {"lora_target_modules": [pattern]}
        for pattern in PATTERNS
    ]
    for name, write in FILES.items():
        path = home / "data" / f"attack-{name}"
        path.touch()
        write(path)
        made.append(path)
        bodies.append({"base_model": base_model, "dataset_name": path.name, "template_name": "chatml"})
    statuses, seconds = [], []
    try:
        for body in bodies:
            began = time.monotonic()
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
                job = client.get(f"/train/{job_id}").raise_for_status().json()
                if job["status"] in ("failed", "completed", "stopped"):
                    return JobEnd(job["status"], job.get("error_code"), job["error"])
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
