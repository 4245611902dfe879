"""`make attack` finds its cases and judges what they yield; the cases themselves have tests beside what they attack."""

import json
import os
import re
import subprocess
import sys
import time

import pytest

from jobs.settings import PROJECT_ROOT
from tests.attack.bystander import Bystander
from tests.attack.case import CASES, ROUGH, CannotRun, Finding, Harm, Target
from tests.attack.run import Result, find_cases, run_case
from tests.patience import BUSY, VARIABLE

# Of several kinds, and soon done.
SHORT = (
    "a_key_that_is_none", "a_read_key_changes", "times_that_nobody", "paths_without_end", "forged_json",
    "can_not_be_forged", "can_not_make_a_key", "an_old_home", "other_accounts", "a_name_that_changes",
)  # fmt: skip


@pytest.fixture
def target(tmp_path):
    """Without a service: these cases ask for none."""
    return Target(None, {}, tmp_path, Bystander("http://127.0.0.1:9", "key"), time.monotonic() + 60)


def judge(monkeypatch, target, attack):
    """What comes of one attack."""
    result = Result()
    monkeypatch.setitem(CASES, "made up", attack)
    run_case("made up", target, result)
    return result


def test_a_case_that_holds_is_clean(monkeypatch, target):
    result = judge(monkeypatch, target, lambda target: [])
    assert result.is_clean
    harms = ("opened", "starved", "unsettled", "leaked", "escaped")
    assert result.counts == {"cases": 1, **dict.fromkeys(harms, 0), "max_other_latency_ms": 0}


@pytest.mark.parametrize("harm", list(Harm))
def test_a_promise_that_is_broken_is_counted(monkeypatch, target, harm):
    result = judge(monkeypatch, target, lambda target: [Finding(harm, "it happened")])
    assert not result.is_clean
    assert result.counts[harm.value] == 1


def test_others_that_were_not_answered_were_starved(monkeypatch, target):
    result = judge(monkeypatch, target, lambda target: target.others.failures.append("/health: 503") or [])
    assert result.counts["starved"] == 1


def test_a_case_that_can_not_run_counts_as_neither(monkeypatch, target):
    def attack(target):
        raise CannotRun("no browser")
        yield

    result = judge(monkeypatch, target, attack)
    assert (result.cases, result.findings, result.broken, result.skipped) == (0, [], [], ["made up"])


def test_a_case_that_fails_by_itself_is_no_success(monkeypatch, target):
    result = judge(monkeypatch, target, lambda target: [1 / 0])
    assert (result.cases, result.broken, result.is_clean) == (1, ["made up"], False)


def test_a_case_without_end_is_left_at_its_deadline(monkeypatch, target):
    object.__setattr__(target, "deadline", time.monotonic() + 2)
    result = judge(monkeypatch, target, lambda target: time.sleep(20) or [])
    assert result.broken == ["made up"]


def test_every_case_says_what_it_is_and_rough_ones_come_last():
    names = find_cases()
    assert len(names) == len(CASES) > 30
    assert all(CASES[name].__doc__ for name in names)
    assert set(names[len(names) - len(ROUGH) :]) == ROUGH
    assert find_cases(["moved_state"]) == ["reads.a_moved_state_folder_opens_nothing"]


def test_each_case_that_the_security_page_names_is_there():
    text = (PROJECT_ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    named = []
    for cell in re.findall(r"attack: ([^|]*) \|", text):
        module = ""
        for name in re.findall(r"`([a-z_.]+)`", cell):
            module = name.split(".")[0] or module
            named.append(f"{module}.{name.split('.')[1]}")
    cases = find_cases()
    assert len(named) > 25
    assert [name for name in named if not any(case.startswith(name) for case in cases)] == []
    assert [case for case in cases if not any(case.startswith(name) for name in named)] == []


@pytest.mark.timeout(400)
def test_a_short_attack_comes_to_nothing():
    """In a process of its own: what attacks leave open is no matter of other tests."""
    environment = os.environ | {VARIABLE: str(BUSY)}
    command = [sys.executable, "-m", "tests.attack.run", *SHORT, "--minutes", "3"]
    done = subprocess.run(
        command, cwd=PROJECT_ROOT, env=environment, capture_output=True, text=True, check=False, timeout=380
    )
    assert done.returncode == 0, done.stdout + done.stderr[-5000:]
    counts = json.loads(done.stdout.splitlines()[-1])
    assert counts.pop("cases") >= len(SHORT)
    assert counts.pop("max_other_latency_ms") > 0
    assert counts == dict.fromkeys((harm.value for harm in Harm), 0)
