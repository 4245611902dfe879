"""What must hold whatever was done to the service, judged from what its clients, its receivers and its registry saw."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

from tests.chaos.aim import Fault
from tests.chaos.faults import BY_HAND, LETHAL
from tests.chaos.watcher import Sight, Watcher
from tests.patience import PATIENCE

JOB_TAG = "tuneyard.job_id"
BOUND_SECONDS = (30.0 + 60.0) * PATIENCE  # a heartbeat and a minute
MAX_ATTEMPTS = 3
TOLD = ("jobs", "faults", "added", "answers", "max_recovery_seconds")  # counts of what is not wrong
Waiting = Callable[[str, float, float], float]


@dataclass(frozen=True)
class Evidence:
    """All that was seen from outside.

    Args:
        wanted: how many jobs were posted.
        accepted: ids of those that were taken.
        cancelled: ids of those whose cancellation was confirmed.
        listed: ids of all jobs that the service lists at the end.
        watcher: the history of every job.
        told: bodies that receivers of webhooks have taken.
        versions: tags of each version in the registry.
        left_over: processes there after the end of their job or of the stack, described.
        faults: what was done to the service.
        lethal: kinds of faults that end the attempt of a job they hit.
        in_line: seconds that a job waited from one moment to another only because no worker was free.
    """

    wanted: int
    accepted: Sequence[str]
    cancelled: Iterable[str]
    listed: Sequence[str]
    watcher: Watcher
    told: Sequence[Mapping[str, Any]]
    versions: Sequence[Mapping[str, str]]
    left_over: list[str]
    faults: Sequence[Fault]
    lethal: Collection[str] = LETHAL
    in_line: Waiting = lambda _job_id, _since, _until: 0.0

    def find_recoveries(self) -> list["Recovery"]:
        """One for each fault and each job that it hit."""
        return find_recoveries(self.faults, self.watcher, self.lethal, self.in_line)


@dataclass
class Verdict:
    """`counts` is the last line of a run; `offenders` has the reasons by job, jobs without a broken word left out."""

    counts: dict[str, float] = field(default_factory=dict)
    offenders: dict[str, list[str]] = field(default_factory=dict)

    def blame(self, key: str, job_id: str, why: str) -> None:
        """Count a broken invariant."""
        self.counts[key] += 1
        self.offenders.setdefault(job_id, []).append(f"{key}: {why}")

    @property
    def is_clean(self) -> bool:
        """Whether every invariant held."""
        broken = sum(value for key, value in self.counts.items() if key not in TOLD)
        return not broken and self.counts["max_recovery_seconds"] <= BOUND_SECONDS


def judge(evidence: Evidence) -> Verdict:
    """Look at everything."""
    verdict = Verdict({"jobs": len(evidence.accepted), "faults": len(evidence.faults)})
    verdict.counts |= dict.fromkeys(("lost", "duplicated", "stuck", "regressed", "undelivered", "orphans"), 0)
    _judge_jobs(evidence, verdict)
    for job_id in evidence.accepted:
        _judge_history(job_id, evidence, verdict)
        _judge_versions(job_id, evidence, verdict)
        _judge_webhooks(job_id, evidence, verdict)
    verdict.counts["orphans"] = len(evidence.left_over)
    recoveries = evidence.find_recoveries()
    verdict.counts["max_recovery_seconds"] = round(max((one.seconds for one in recoveries), default=0.0), 1)
    for one in recoveries:
        if one.seconds > BOUND_SECONDS:
            verdict.offenders.setdefault(one.job_id, []).append(f"{one.seconds:.1f} s to get over: {one.fault.kind}")
    return verdict


def _judge_jobs(evidence: Evidence, verdict: Verdict) -> None:
    """Each job that was posted is there, once."""
    for job_id in set(evidence.accepted) - set(evidence.listed):
        verdict.blame("lost", job_id, "it is not listed at the end")
    for _ in range(evidence.wanted - len(evidence.accepted)):
        verdict.blame("lost", "not accepted", "it was posted and never accepted")
    for job_id in set(evidence.listed) - set(evidence.accepted):
        verdict.blame("duplicated", job_id, "nobody was told of it: an answer was lost and the job made again")


def _judge_history(job_id: str, evidence: Evidence, verdict: Verdict) -> None:
    """It comes to one end and stays there; it fails only when faults have used its attempts up."""
    sights = evidence.watcher.sights.get(job_id, [])
    for before, after in pairwise(sights):
        if before.has_ended and after.status != before.status:
            verdict.blame("regressed", job_id, f"{before.status} became {after.status}")
    if not sights or not sights[-1].has_ended:
        verdict.blame("stuck", job_id, f"it is {sights[-1].status if sights else 'unseen'} at the end")
        return
    hits = sum(job_id in fault.hit for fault in evidence.faults)
    by_hand = any(job_id in fault.hit for fault in evidence.faults if fault.kind in BY_HAND)
    is_by_hand = by_hand and sights[-1].error_code == "ended_by_hand"
    if sights[-1].status == "failed" and hits < MAX_ATTEMPTS and not is_by_hand:
        verdict.blame("lost", job_id, f"it failed ({sights[-1].error_code}) though only {hits} faults hit it")
    if sights[-1].status != "cancelled" and job_id in evidence.cancelled:
        verdict.blame("regressed", job_id, f"it was cancelled and {sights[-1].status}")


def _judge_versions(job_id: str, evidence: Evidence, verdict: Verdict) -> None:
    """Its adapter is registered once if it has completed, else at most once."""
    versions = sum(tags.get(JOB_TAG) == job_id for tags in evidence.versions)
    if versions > 1:
        verdict.blame("duplicated", job_id, f"{versions} versions of its adapter are registered")
    sight = evidence.watcher.last(job_id)
    if sight and sight.status == "completed" and versions == 0:
        verdict.blame("lost", job_id, "it completed and its adapter is not registered")


def _judge_webhooks(job_id: str, evidence: Evidence, verdict: Verdict) -> None:
    """Its end was told, and no other one."""
    told = Counter(str(body["status"]) for body in evidence.told if body["job_id"] == job_id)
    sight = evidence.watcher.last(job_id)
    if sight is None or not sight.has_ended:
        return
    if not told[sight.status]:
        verdict.blame("undelivered", job_id, f"nobody was told that it {sight.status}")
    for status in told.keys() - {sight.status}:
        verdict.blame("regressed", job_id, f"its webhook said {status}, but it {sight.status}")


class Recovery(NamedTuple):
    """How a job got over a fault, in seconds since the last fault that hit it meanwhile, and since this one.

    What it waited in line for a worker is left out of the first.
    """

    fault: Fault
    job_id: str
    seconds: float
    all_seconds: float


def find_recoveries(
    faults: Sequence[Fault],
    watcher: Watcher,
    lethal: Collection[str] = LETHAL,
    in_line: Waiting = lambda _job_id, _since, _until: 0.0,
) -> list[Recovery]:
    """One for each fault and each job that it hit, as far as they were seen."""
    found = []
    for fault in faults:
        for job_id, attempt in fault.hit.items():
            well_at = _find_sign_of_life(job_id, fault, attempt, watcher, lethal)
            if well_at is not None:
                last = max(other.at for other in faults if job_id in other.hit and other.at <= well_at)
                seconds = well_at - last - in_line(job_id, last, well_at)
                found.append(Recovery(fault, job_id, seconds, well_at - fault.at))
    return found


def _find_sign_of_life(
    job_id: str, fault: Fault, attempt: int, watcher: Watcher, lethal: Collection[str]
) -> float | None:
    """When the job was first seen at work after the fault, at its end or in line for a start; None when it was not."""
    moved_on_at = watcher.second_poll_after(fault.at)  # what is new then has happened after the fault
    for sight in watcher.sights.get(job_id, []):
        if sight.at <= fault.at:
            continue
        has_moved_on = fault.kind not in lethal and sight.at >= moved_on_at
        is_in_line = not attempt and sight.status == "queued"  # it was about to start, and others came first
        if sight.has_ended or (sight.attempt or 0) > attempt or has_moved_on or is_in_line:
            return sight.at
    return None


def describe(job_id: str, evidence: Evidence, began: float) -> str:
    """A job's history as one reads it; times in seconds since the run began."""
    lines = []
    for fault in evidence.faults:
        if job_id in fault.hit:
            lines.append((fault.at, f"-- {fault.kind} ({fault.target}), attempts begun: {fault.hit[job_id]}"))
    shown: Sight | None = None
    for sight in evidence.watcher.sights.get(job_id, []):
        if shown is None or (shown.status, shown.attempt, shown.phase) != (sight.status, sight.attempt, sight.phase):
            code = f" ({sight.error_code})" if sight.error_code else ""
            said = f"{sight.status}{code}, attempt {sight.attempt}, {sight.phase}, step {sight.step}"
            lines.append((sight.at, said))
        shown = sight
    told = [str(body["status"]) for body in evidence.told if body["job_id"] == job_id]
    versions = sum(tags.get(JOB_TAG) == job_id for tags in evidence.versions)
    text = [f"job {job_id}", *(f"  {at - began:7.1f} s  {line}" for at, line in sorted(lines))]
    return "\n".join([*text, f"  webhook: {', '.join(told) or 'nothing'}; versions registered: {versions}"])
