"""`make pool`: jobs on three hosts that share nothing but servers, while hosts, watchdogs, network and store are lost.

Whether every promise was kept is judged from outside. The last line is one JSON object; the exit status is 1 when an
invariant is broken, and then the offending jobs' histories are printed and the folder with the logs is kept.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.chaos.clients import SMALL, Clients, Wish, list_jobs
from tests.chaos.invariants import Evidence, Verdict, describe, judge
from tests.chaos.pacing import NoTarget, pace, wait_until
from tests.chaos.run import say, wait_for_ends, wait_for_processes
from tests.chaos.service import find_left_over, read_versions
from tests.chaos.watcher import Watcher
from tests.patience import PATIENCE
from tests.pool import namespaces
from tests.pool.faults import KINDS, LETHAL, Faults, Takeover, draw_kinds
from tests.pool.observer import Observer, Resume, find_resumes
from tests.pool.overhead import measure_overhead
from tests.pool.pool import MODEL, WORKERS, Pool, running_pool
from tests.pool.twin import compare_with_twin

LAST_JOBS = 3  # are left in peace, so that the last fault still has something to hit
SPREAD_SECONDS = (0.5, 6.0)  # from when a fault is due until it comes
DELIVERY_SECONDS = 90.0
READY_SECONDS = 90.0 * PATIENCE
TAKEOVER_SECONDS = 15.0 * PATIENCE
STOPPED = 130  # exit status of a run that is stopped from outside
SHOWN = 6  # recoveries that took longest
WORDS = {"duplicated": "doubled", "orphans": "orphaned"}


@dataclass(frozen=True)
class Options:
    """What is run."""

    seed: int = 1  # of the jobs, the faults and their moments
    jobs: int = 30
    faults: int = 36
    minutes: float = 30.0  # until when all jobs must have ended
    pairs: int = 3  # of jobs with and without the store, for what it costs
    kinds: list[str] | None = None  # of faults; all if None
    keep: bool = False  # the folder and its logs in any case
    plain: bool = False  # hosts without namespaces


@dataclass
class Findings:
    """What a run has shown besides the evidence that `judge` looks at."""

    evidence: Evidence
    resumes: list[Resume]
    takeovers: list[Takeover]
    errors: list[str]
    overhead_percent: float | None
    is_identical: bool | None  # of the adapter of an interrupted job and that of one left in peace


def main() -> None:
    """Run it in namespaces of its own, print what became of it and exit."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a stop from outside tears down like Ctrl-C
    options, folder = _read_arguments()
    if folder is not None:
        namespaces.prepare()
        sys.exit(report(options, Path(folder), has_namespaces=True))
    obstacle = "left out" if options.plain else namespaces.find_obstacle()
    if obstacle is not None:
        print(
            f"No namespaces here ({obstacle}): the hosts are processes with host names and folders of their own, and "
            "no network is cut."
        )
    made = tempfile.mkdtemp(prefix="tuneyard-pool-")
    is_kept, code = False, STOPPED
    try:
        Path(made).chmod(0o711)  # PostgreSQL runs as another user
        if obstacle is None:
            command = [sys.executable, "-m", "tests.pool.run", *sys.argv[1:], "--folder", made]
            code = namespaces.run_inside(command)
        else:
            code = report(options, Path(made), has_namespaces=False)
        is_kept = options.keep or code != 0
    except KeyboardInterrupt:
        print("stopped")
    finally:
        if not is_kept:
            shutil.rmtree(made, ignore_errors=True)
    sys.exit(code)


def report(options: Options, folder: Path, has_namespaces: bool) -> int:
    """One run in this folder; prints its story and its figures, and returns the exit status."""
    print(f"state and logs: {folder}", flush=True)
    began = time.monotonic()
    with running_pool(folder, has_namespaces) as pool:
        print(f"{time.monotonic() - began:7.1f} s  the pool is up", flush=True)
        findings = examine(pool, options, began, has_namespaces)
    findings.evidence.left_over.extend(find_left_over(folder))
    verdict = judge(findings.evidence)
    counts = count(findings, verdict)
    for one in sorted(findings.evidence.find_recoveries(), key=lambda one: -one.seconds)[:SHOWN]:
        print(f"{one.seconds:.1f} s to get over: {one.fault.kind} ({one.all_seconds:.1f} s with waiting), {one.job_id}")
    for takeover in findings.takeovers:
        print(f"{takeover.seconds:.1f} s until another watchdog was active: {takeover.kind}")
    for job_id, reasons in verdict.offenders.items():
        print(describe(job_id, findings.evidence, began), *reasons, sep="\n  BROKEN ")
    for line in [*findings.evidence.left_over, *findings.errors]:
        print(f"BROKEN {line}")
    print(json.dumps(counts))
    return int(not is_clean(counts, findings, verdict, options))


def count(findings: Findings, verdict: Verdict) -> dict[str, Any]:
    """The last line of a run."""
    counts: dict[str, Any] = {WORDS.get(name, name): value for name, value in verdict.counts.items()}
    below = [resume for resume in findings.resumes if resume.step < resume.stored_step]
    for resume in below:
        print(f"BROKEN attempt {resume.attempt} of {resume.job_id} began at step {resume.step}, though the store had ")
        print(f"       that of step {resume.stored_step}")
    failed = [job for job in findings.evidence.accepted if _status(findings, job) == "failed"]
    for job_id in failed:  # no job loses as many attempts as it has
        verdict.offenders.setdefault(job_id, []).append("lost: it failed")
    takeovers = [takeover.seconds for takeover in findings.takeovers]
    percent = findings.overhead_percent
    return counts | {
        "lost": max(counts["lost"], len(failed)),
        "resumed": len(findings.resumes),
        "resumed_above_0": sum(resume.step > 0 for resume in findings.resumes),
        "restarted_below": len(below),
        "bit_identical": findings.is_identical,
        "max_takeover_seconds": round(max(takeovers), 1) if takeovers else None,
        "upload_overhead_percent": None if percent is None else round(percent, 1),
    }


def is_clean(counts: dict[str, Any], findings: Findings, verdict: Verdict, options: Options) -> bool:
    """Whether every invariant held."""
    return (
        verdict.is_clean
        and not counts["lost"]
        and not counts["restarted_below"]
        and bool(findings.is_identical)
        and not findings.errors
        and (counts["max_takeover_seconds"] or 0) <= TAKEOVER_SECONDS
        and counts["faults"] >= options.faults
    )


def examine(pool: Pool, options: Options, began: float, can_cut: bool) -> Findings:
    """Measure what the store costs, have jobs posted and do faults meanwhile; what came of it."""
    percent, others = measure_overhead(pool, options.pairs) if options.pairs else (None, [])
    rng = random.Random(options.seed)  # noqa: S311 - no secret
    deadline = time.monotonic() + 60 * options.minutes
    kinds = draw_kinds(options.faults, options.kinds or [*KINDS], can_cut, rng)
    watcher, observer = Watcher(pool.url), Observer(pool)
    wishes = draw_wishes(options.jobs, pool, rng)
    clients = Clients(pool.url, watcher, wishes, deadline, line=len(WORKERS))
    faults = Faults(pool, observer, watcher, rng, deadline)
    for thread in (watcher, observer, clients):
        thread.start()
    try:
        for kind in pace(kinds, options.jobs - LAST_JOBS, clients, rng, SPREAD_SECONDS, deadline):
            try:
                fault = faults.do(kind)
                say(began, clients, f"{kind} ({fault.target}), hit {len(fault.hit)}")
            except NoTarget as error:
                say(began, clients, f"{kind}: {error}")
        wait_for_ends(began, clients, deadline)
        faults.close()
        evidence = gather(pool, clients, faults, observer, others)
        resumes = [
            resume
            for job_id in clients.accepted
            for resume in find_resumes(pool.servers.database_url, job_id, observer.stored[job_id])
        ]
        return Findings(
            evidence, resumes, faults.takeovers, faults.errors, percent, compare_with_twin(pool, clients, resumes)
        )
    finally:
        faults.close()
        clients.close()
        observer.close()
        watcher.close()


def draw_wishes(jobs: int, pool: Pool, rng: random.Random) -> list[Wish]:
    """Jobs of some ten to thirty seconds of training; one in fifteen is cancelled while it runs."""
    wishes = []
    for number in range(jobs):
        body = SMALL | {
            "model_name": MODEL,
            "lora_name": f"pool-{number % 5}",
            "max_steps": rng.randrange(400, 700),
            "save_steps": 50,
            "seed": number,
            "webhook_url": pool.receiver.url,
        }
        is_cancelled = number % 15 == 7
        cancel: Any = "running" if is_cancelled else None
        wishes.append(Wish(f"pool {number}", body, cancel, rng.uniform(0, 20)))
    return wishes


def gather(pool: Pool, clients: Clients, faults: Faults, observer: Observer, others: list[str]) -> Evidence:
    """What is seen in the end, once receivers and processes had their time."""
    left_over = wait_for_processes(list(clients.accepted), str)
    with httpx.Client(base_url=pool.url, timeout=60) as api:
        wait_until(lambda: _is_up(api), time.monotonic() + READY_SECONDS)
        listed = list_jobs(api, READY_SECONDS)
    credentials = ("trainer", pool.servers.mlflow_password)

    def look() -> Evidence:
        return Evidence(
            wanted=len(clients.wishes),
            accepted=list(clients.accepted),
            cancelled=set(clients.cancelled),
            listed=[job_id for job_id in listed if job_id not in others],
            watcher=clients.watcher,
            told=list(pool.receiver.taken),
            versions=[version.tags for version in read_versions(pool.servers.mlflow_url, credentials)],
            left_over=left_over,
            faults=faults.done,
            lethal=LETHAL,
            in_line=observer.count_seconds_in_line,
        )

    wait_until(lambda: judge(look()).counts["undelivered"] == 0, time.monotonic() + DELIVERY_SECONDS)
    return look()


def _status(findings: Findings, job_id: str) -> str | None:
    sight = findings.evidence.watcher.last(job_id)
    return sight.status if sight else None


def _is_up(api: httpx.Client) -> bool:
    try:
        return api.get("/ready").is_success
    except httpx.HTTPError:
        return False


def _read_arguments() -> tuple[Options, str | None]:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--seed", type=int, default=Options.seed, help="of the jobs, the faults and their moments")
    arguments.add_argument("--jobs", type=int, default=Options.jobs)
    arguments.add_argument("--faults", type=int, default=Options.faults)
    arguments.add_argument("--minutes", type=float, default=Options.minutes, help="until when all jobs must have ended")
    arguments.add_argument("--pairs", type=int, default=Options.pairs, help="of jobs that measure what the store costs")
    arguments.add_argument("--kinds", nargs="+", choices=[*KINDS], help="of faults; all if not given")
    arguments.add_argument("--keep", action="store_true", help="keep the folder and its logs in any case")
    arguments.add_argument("--plain", action="store_true", help="hosts without namespaces")
    arguments.add_argument("--folder", help=argparse.SUPPRESS)
    given = vars(arguments.parse_args())
    folder = given.pop("folder") if os.environ.get(namespaces.INSIDE) else (given.pop("folder"), None)[1]
    return Options(**given), folder


if __name__ == "__main__":
    main()
