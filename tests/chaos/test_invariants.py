"""The judge finds each invariant broken where it is broken, and nothing where it is not."""

from dataclasses import replace

import pytest

from tests.chaos.aim import Fault
from tests.chaos.invariants import JOB_TAG, Evidence, describe, find_recoveries, judge
from tests.chaos.watcher import Sight, Watcher

BROKEN = ("lost", "duplicated", "stuck", "regressed", "undelivered", "orphans")


def watch(*sights, job_id="a"):
    """A watcher that has seen this of one job, and asked every second."""
    watcher = Watcher("http://127.0.0.1:1")
    for sight in sights:
        watcher.keep(job_id, sight)
    watcher.polls = [float(second) for second in range(300)]
    return watcher


def told(status):
    return {"job_id": "a", "status": status}


def completed():
    """What is seen of a job with which all is well."""
    watcher = watch(Sight(1, "queued"), Sight(2, "running", 1), Sight(9, "completed", 1))
    return Evidence(1, ["a"], set(), ["a"], watcher, [told("completed")], [{JOB_TAG: "a"}], [], [])


def test_all_is_well():
    verdict = judge(completed())

    assert verdict.is_clean
    assert verdict.offenders == {}
    assert list(verdict.counts) == ["jobs", "faults", *BROKEN, "max_recovery_seconds"]
    assert verdict.counts == {"jobs": 1, "faults": 0, **dict.fromkeys(BROKEN, 0), "max_recovery_seconds": 0.0}


@pytest.mark.parametrize(
    ("broken", "changes"),
    [
        ("lost", {"listed": []}),
        ("lost", {"wanted": 2}),
        ("lost", {"versions": []}),
        ("lost", {"watcher": watch(Sight(9, "failed", 1)), "told": [told("failed")]}),
        ("duplicated", {"listed": ["a", "b"]}),
        ("duplicated", {"versions": [{JOB_TAG: "a"}, {JOB_TAG: "a"}]}),
        ("stuck", {"watcher": watch(Sight(2, "running", 1))}),
        ("stuck", {"watcher": watch()}),
        ("regressed", {"watcher": watch(Sight(8, "failed", 1), Sight(9, "running", 2), Sight(10, "completed", 2))}),
        ("regressed", {"cancelled": {"a"}}),
        ("regressed", {"told": [told("failed"), told("completed")]}),
        ("undelivered", {"told": []}),
        ("orphans", {"left_over": ["12 postgres"]}),
    ],
)
def test_a_broken_promise_is_seen(broken, changes):
    verdict = judge(replace(completed(), **changes))

    assert not verdict.is_clean
    assert {name: verdict.counts[name] for name in BROKEN} == {**dict.fromkeys(BROKEN, 0), broken: 1}


def test_a_job_may_fail_once_its_attempts_are_used_up():
    faults = [Fault("trainer killed", at, "", {"a": 1}) for at in (3.0, 4.0, 5.0)]
    failed = {"watcher": watch(Sight(9, "failed", 3)), "told": [told("failed")], "versions": []}

    assert judge(replace(completed(), **failed, faults=faults)).is_clean
    assert judge(replace(completed(), **failed, faults=faults[1:])).counts["lost"] == 1


def test_a_job_is_well_again_once_its_next_attempt_has_begun():
    watcher = watch(Sight(2, "running", 1, step=3), Sight(11, "running", 1, step=4), Sight(40, "running", 2, step=4))
    killed = Fault("trainer killed", 10.0, "", {"a": 1})

    assert [one.seconds for one in find_recoveries([killed], watcher)] == [30.0]
    assert judge(replace(completed(), watcher=watcher, faults=[killed])).counts["max_recovery_seconds"] == 30.0


def test_a_job_whose_process_was_not_hit_is_well_once_it_has_moved_on():
    watcher = watch(Sight(2, "running", 1, step=3), Sight(11.5, "running", 1, step=4), Sight(14, "running", 1, step=5))
    away = Fault("prefect killed", 10.5, "", {"a": 1})

    assert [one.seconds for one in find_recoveries([away], watcher)] == [3.5]  # 4 may have been there before


def test_a_job_that_was_about_to_start_is_well_once_it_is_in_line_again():
    sights = [Sight(9.5, "running"), Sight(10.5, "queued"), Sight(200, "running", 1)]
    paused = Fault("pool paused", 10.0, "", {"a": 0})

    assert [one.seconds for one in find_recoveries([paused], watch(*sights))] == [0.5]
    begun = replace(paused, hit={"a": 1})
    assert [one.seconds for one in find_recoveries([begun], watch(*sights))] == [190.0]


def test_of_two_faults_before_a_job_is_well_the_later_one_counts():
    watcher = watch(Sight(2, "running", 1), Sight(70, "running", 1, "training"), Sight(150, "completed", 2))
    faults = [Fault("trainer killed", 10.0, "", {"a": 1}), Fault("prefect killed", 50.0, "", {"a": 1})]

    assert [(one.seconds, one.all_seconds) for one in find_recoveries(faults, watcher)] == [(100, 140), (20, 20)]
    verdict = judge(replace(completed(), watcher=watcher, faults=faults))
    assert not verdict.is_clean
    assert verdict.offenders == {"a": ["100.0 s to get over: trainer killed"]}


def test_a_history_is_told_in_order():
    watcher = watch(Sight(2, "running", 1, "training", 3), Sight(9, "failed", 2, "training", 5, 9, "killed"))
    evidence = replace(completed(), watcher=watcher, faults=[Fault("trainer killed", 4.0, "pid 12", {"a": 1})])

    assert describe("a", evidence, began=1.0).splitlines() == [
        "job a",
        "      1.0 s  running, attempt 1, training, step 3",
        "      3.0 s  -- trainer killed (pid 12), attempts begun: 1",
        "      8.0 s  failed (killed), attempt 2, training, step 5",
        "  webhook: completed; versions registered: 1",
    ]
