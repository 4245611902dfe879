"""`make chaos`: many small jobs while parts of the service are killed, stopped and restarted at random.

Meanwhile people have their hands in Prefect's and MLflow's pages, add files and chat with models.

Whether every promise was kept is judged from outside. The last line is one JSON object; the exit status is 1 when an
invariant is broken, and then the offending jobs' histories are printed and the state folder with its logs is kept.
"""

import argparse
import json
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.additions import KEEP_SECONDS, Adder
from tests.chaos.beside import Beside
from tests.chaos.chats import ANSWER_SECONDS, IDLE_SECONDS, Chatter
from tests.chaos.clients import Clients, ask, draw_wishes, list_jobs
from tests.chaos.faults import Faults, draw_kinds
from tests.chaos.invariants import Evidence, Verdict, describe, judge
from tests.chaos.pacing import NoTarget, pace, wait_until
from tests.chaos.service import Service, find_job_processes, find_left_over, running_service
from tests.chaos.watcher import Watcher
from tests.patience import PATIENCE

SETTINGS = {
    "keep_uploads_hours": KEEP_SECONDS / 3600,
    "generation_seconds": ANSWER_SECONDS,
    "generation_idle_seconds": IDLE_SECONDS,
}
LAST_JOBS = 4  # are left in peace, so that the last fault still has something to hit
SPREAD_SECONDS = (1.0, 14.0)  # from when a fault is due until it comes
DELIVERY_SECONDS = 240.0  # for receivers that answer 500 to take every end
READY_SECONDS = 90.0 * PATIENCE  # for what the last faults hit to come back
SHOWN = 5  # recoveries that took longest
GONE_SECONDS = 30.0 * PATIENCE  # for the processes of jobs that have ended


@dataclass(frozen=True)
class Options:
    """What is run."""

    seed: int = 1  # of the jobs, the faults and their moments
    jobs: int = 60
    faults: int = 40
    minutes: float = 20.0  # until when all jobs must have ended
    workers: int = 2  # jobs at the same time: each begins on one core, for the most part
    keep: bool = False  # the state folder and its logs in any case


def main() -> None:
    """Run it, print what became of it and exit."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--seed", type=int, default=Options.seed, help="of the jobs, the faults and their moments")
    arguments.add_argument("--jobs", type=int, default=Options.jobs)
    arguments.add_argument("--faults", type=int, default=Options.faults)
    arguments.add_argument("--minutes", type=float, default=Options.minutes, help="until when all jobs must have ended")
    arguments.add_argument("--workers", type=int, default=Options.workers, help="jobs at the same time")
    arguments.add_argument("--keep", action="store_true", help="keep the state folder and its logs in any case")
    options = Options(**vars(arguments.parse_args()))
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a stop from outside tears down like Ctrl-C
    verdict = run(options)
    print(json.dumps(verdict.counts))
    sys.exit(not verdict.is_clean or verdict.counts["faults"] < options.faults)


def run(options: Options) -> Verdict:
    """One run in a folder of its own, which is kept if an invariant is broken."""
    folder = Path(tempfile.mkdtemp(prefix="tuneyard-chaos-"))
    print(f"state and logs: {folder}", flush=True)
    rng = random.Random(options.seed)  # noqa: S311 - no secret
    with running_service(folder, options.workers, rng, **SETTINGS) as service:
        began = time.monotonic()
        evidence, beside = disturb(service, rng, options, began)
    evidence.left_over.extend(find_left_over(service.settings.home))
    verdict = judge(evidence)
    verdict.counts |= beside.counts
    for finding in beside.findings:
        print(f"BROKEN {finding.harm}: {finding.what}")
    for one in sorted(evidence.find_recoveries(), key=lambda one: -one.all_seconds)[:SHOWN]:
        others = f", {one.seconds:.1f} s since the last fault meanwhile" if one.seconds < one.all_seconds else ""
        print(f"{one.all_seconds:.1f} s to get over: {one.fault.kind}{others}")
    for job_id, reasons in verdict.offenders.items():
        print(describe(job_id, evidence, began), *reasons, sep="\n  BROKEN ")
    for process in evidence.left_over:
        print(f"left over: {process}")
    if verdict.is_clean and not options.keep:
        shutil.rmtree(folder)
    return verdict


def disturb(service: Service, rng: random.Random, options: Options, began: float) -> tuple[Evidence, Beside]:
    """Have jobs posted, files added and models asked, and do faults meanwhile; what came of it."""
    deadline = began + 60 * options.minutes
    kinds = draw_kinds(options.faults, rng)
    watcher = Watcher(service.url)
    wishes = draw_wishes(options.jobs, service, rng)
    adder = Adder(service.url, random.Random(options.seed), deadline)  # noqa: S311 - no secret
    clients = Clients(service.url, watcher, wishes, deadline, find_added=adder.pick)
    faults = Faults(service, watcher, rng, deadline, adder)
    chatter = Chatter(service, faults.was_away)
    threads = (watcher, clients, adder, chatter)
    for thread in threads:
        thread.start()
    try:
        for kind in pace(kinds, options.jobs - LAST_JOBS, clients, rng, SPREAD_SECONDS, deadline):
            try:
                fault = faults.do(kind)
                say(began, clients, f"{kind} ({fault.target}), hit {len(fault.hit)}")
            except NoTarget as error:
                say(began, clients, f"{kind}: {error}")
        adder.close()
        wait_for_ends(began, clients, deadline)
        chatter.close()
        evidence = gather(service, clients, faults)
        beside = Beside([*adder.examine(service.settings.home), *chatter.examine()])
        beside.told |= {"added": len(adder.additions), "answers": chatter.answers}
        unanswered = sum(addition.unanswered for addition in adder.additions)
        errors = ", ".join(f"{count} {code}" for code, count in sorted(chatter.errors.items()))
        say(began, clients, f"{len(adder.additions)} files added, {unanswered} requests for that without an answer")
        say(began, clients, f"{chatter.answers} answers, {errors or 'no error'}")
        return evidence, beside
    finally:
        for thread in reversed(threads):
            thread.close()


def wait_for_ends(began: float, clients: Clients, deadline: float) -> None:
    """Wait until all jobs have ended, and say how; at the deadline, say how many had not."""
    wait_until(clients.have_all_ended, deadline)
    ends = Counter(sight.status for sight in map(clients.watcher.last, list(clients.accepted)) if sight)
    say(began, clients, ", ".join(f"{count} {status}" for status, count in sorted(ends.items())))
    late = len(clients.wishes) - clients.count_ended()
    if late:
        say(began, clients, f"out of time: {late} jobs that had not ended count as lost or stuck (see --minutes)")


def gather(service: Service, clients: Clients, faults: Faults) -> Evidence:
    """What is seen in the end, once receivers and processes had their time."""
    left_over = wait_for_processes(list(clients.accepted), service.run_of)
    api = service.api.client
    wait_until(lambda: api.get("/ready").is_success, time.monotonic() + READY_SECONDS)
    listed = list_jobs(api, READY_SECONDS)
    kept = [job_id for job_id in clients.watcher.unlisted if ask(api, f"/train/{job_id}", READY_SECONDS).is_success]
    listed += [job_id for job_id in kept if job_id not in listed]

    def look() -> Evidence:
        return Evidence(
            wanted=len(clients.wishes),
            accepted=list(clients.accepted),
            cancelled=set(clients.cancelled),
            listed=listed,
            watcher=clients.watcher,
            told=[*service.friendly.taken, *service.moody.taken],
            versions=[*(version.tags for version in service.read_versions()), *faults.erased],
            left_over=left_over,
            faults=faults.done,
        )

    wait_until(lambda: judge(look()).counts["undelivered"] == 0, time.monotonic() + DELIVERY_SECONDS)
    return look()


def wait_for_processes(job_ids: list[str], run_of: Callable[[str], str]) -> list[str]:
    """Those of jobs that have ended that are there still, after they had time to go."""

    jobs = {run_of(job_id): job_id for job_id in job_ids}

    def find() -> list[str]:
        return [f"{process.pid}, of job {jobs[run]}" for run, process in find_job_processes() if run in jobs]

    wait_until(lambda: not find(), time.monotonic() + GONE_SECONDS)
    return find()


def say(began: float, clients: Clients, what: str) -> None:
    """One line of the run's story."""
    print(
        f"{time.monotonic() - began:7.1f} s  {clients.count_ended():3} of {len(clients.accepted):3}  {what}", flush=True
    )


if __name__ == "__main__":
    main()
