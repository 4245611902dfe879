"""`make attack`: everything the attacks of this folder know, against a service of its own.

Bounded, at most 15 minutes, on loopback only. A client that has nothing to do with it measures how long others wait.
The last line is one JSON object; the exit status is 1 when an attack came to anything or did not run to its end, and
then the state folder with its logs is kept.
"""

import argparse
import importlib
import json
import pkgutil
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from jobs.clients.keys import KeyScope, create_key
from jobs.storage.tables import engine_for
from tests.attack.bystander import Bystander
from tests.attack.case import CASES, ROUGH, CannotRun, Finding, Harm, Target
from tests.chaos.run import wait_until
from tests.chaos.service import find_left_over, running_service
from tests.patience import PATIENCE

MINUTES = 13.0  # for the cases; the service starts and stops in the rest of the quarter of an hour
CASE_SECONDS = 150.0  # of one case, unless less is left
SEED = 1
STEP_SECONDS = 3.0  # of reading what is hostile: ten by default, and there is much to read
KEYS_SECONDS = 10.0 * PATIENCE  # for a running API to notice that keys are in use


@dataclass
class Result:
    """What came of all cases."""

    cases: int = 0
    findings: list[Finding] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)  # could not run here, and counts as neither
    broken: list[str] = field(default_factory=list)  # ended in an error of their own
    max_other_latency_ms: float = 0.0

    @property
    def is_clean(self) -> bool:
        """Whether nothing was found and everything was tried."""
        return self.cases > 0 and not self.findings and not self.broken

    @property
    def counts(self) -> dict[str, float]:
        """The numbers of the last line."""
        found = Counter(finding.harm for finding in self.findings)
        harms = {harm.value: found[harm] for harm in Harm}
        return {"cases": self.cases, **harms, "max_other_latency_ms": round(self.max_other_latency_ms)}


def main() -> None:
    """Run it, print what became of it and exit."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("names", nargs="*", help="parts of the names of the cases to run; all if none is given")
    arguments.add_argument("--minutes", type=float, default=MINUTES, help="until when all cases must have run")
    arguments.add_argument("--list", action="store_true", help="show the cases and run none")
    options = arguments.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a stop from outside tears down like Ctrl-C
    names = find_cases(options.names)
    if options.list:
        print(*names, sep="\n")
        return
    result = run(names, options.minutes)
    print(json.dumps(result.counts))
    sys.exit(not result.is_clean)


def find_cases(parts: Iterable[str] = ()) -> list[str]:
    """Names of the cases in all modules of this folder that hold one of these parts, or of all."""
    package = importlib.import_module("tests.attack")
    for module in sorted(found.name for found in pkgutil.iter_modules(package.__path__)):
        if not module.startswith("test_") and module != "run":
            importlib.import_module(f"tests.attack.{module}")
    parts = list(parts)
    found = [name for name in CASES if not parts or any(part in name for part in parts)]
    return sorted(found, key=lambda name: name in ROUGH)


def run(names: Iterable[str], minutes: float = MINUTES) -> Result:
    """These cases, one after the other, in a folder of their own, which is kept if one came to anything."""
    folder = Path(tempfile.mkdtemp(prefix="tuneyard-attack-"))
    print(f"state and logs: {folder}", flush=True)
    result = Result()
    rng = random.Random(SEED)  # noqa: S311 - no secret
    with running_service(folder, 1, rng, input_step_seconds=STEP_SECONDS) as service:
        engine = engine_for(str(service.settings.database_url))
        keys = {scope.value: create_key(engine, f"attack-{scope.value}", scope)[1] for scope in KeyScope}
        engine.dispose()
        service.api.client.headers["Authorization"] = f"Bearer {keys['submit']}"
        bystander = Bystander(service.url, keys["read"])
        target = Target(service, keys, folder / "attackers", bystander)
        target.folder.mkdir()
        wait_until(lambda: target.client(None).get("/queue").status_code == 401, time.monotonic() + KEYS_SECONDS)
        end = time.monotonic() + 60 * minutes
        with bystander.asking():
            for name in names:
                run_case(name, replace(target, deadline=min(end, time.monotonic() + CASE_SECONDS)), result)
        result.max_other_latency_ms = bystander.slowest_ms
        print(f"others: {bystander.answered} answers, the slowest for {bystander.slowest}", flush=True)
    for process in find_left_over(folder / "state"):
        result.findings.append(Finding(Harm.UNSETTLED, f"left over: {process}"))
        print(f"left over: {process}")
    if result.is_clean:
        shutil.rmtree(folder)
    return result


def run_case(name: str, target: Target, result: Result) -> None:
    """One case to its end, or to its deadline."""
    began, before, found = time.monotonic(), len(target.others.failures), list[Finding]()
    ended: list[BaseException | None] = []

    def attack() -> None:
        try:
            found.extend(CASES[name](target))
        except (Exception, KeyboardInterrupt) as error:
            ended.append(error)
        else:
            ended.append(None)

    if target.deadline - began < 1:
        result.broken.append(name)
        print(f"NOT RUN  {name}: no time is left", flush=True)
        return
    thread = threading.Thread(target=attack, name=name, daemon=True)
    thread.start()
    thread.join(target.deadline - began)
    error = ended[0] if ended else TimeoutError(f"not done after {time.monotonic() - began:.0f} s")
    if isinstance(error, CannotRun):
        result.skipped.append(name)
        print(f"can't run  {name}: {error}", flush=True)
        return
    result.cases += 1
    if error is not None:
        result.broken.append(name)
        print("".join(traceback.format_exception(error)))
    found += [Finding(Harm.STARVED, f"another client got {what}") for what in target.others.failures[before:]]
    result.findings += found
    word = "ERROR" if error else "FOUND" if found else "ok"
    print(f"{word:6} {time.monotonic() - began:6.1f} s  {name}", *found[:10], sep="\n    ", flush=True)


if __name__ == "__main__":
    main()
