"""The servers behind the API: stopped where they stand, emptied, newer than the code, out of space; clocks set."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import psutil
from sqlalchemy import Connection, create_engine, text, update

from jobs.storage.tables import WebhookDelivery
from jobs.watchdog.clock_steps import ClockSteps
from jobs.webhooks.outbox import add_delivery
from tests.attack.case import Finding, Harm, Target, case, rough_case
from tests.attack.processes import another_api
from tests.receiver import Receiver

AT_ONCE = 45
ANSWER_SECONDS = 9.0  # a read has a deadline of 6 s; two cores have more to do meanwhile
HEALTH_SECONDS = 2.0
NOTICED_SECONDS = 12.0  # a process looks for another schema every 10 s, and at keys every 3
CALLED_SECONDS = 5.0
HOUR = 3600.0


@rough_case
def a_server_that_stops_holds_no_request(target: Target) -> Iterator[Finding]:
    """Each of them with SIGSTOP: requests end soon with a sentence, those that need nothing are answered at once."""
    places = {"prefect": ("/queue", "/train"), "mlflow": ("/ready",), "postgres": ("/queue", "/api/sft/configs")}
    for name, paths in places.items():
        with target.others.resting():
            with stopped(target, name), ThreadPoolExecutor(AT_ONCE + 1) as pool:
                asked = [pool.submit(time_answer, target, paths[number % len(paths)]) for number in range(AT_ONCE)]
                time.sleep(0.5)
                healths = [time_answer(target, "/health", None) for _ in range(5)]
                strangers = [time_answer(target, path, None)[0] for path in ("/queue", "/train")]
                answers = [one.result() for one in asked]
            yield from wait_until_served(target, f"{name} went on")
        if slow := [one for one in answers if one[1] > ANSWER_SECONDS or one[0] not in (200, 503)]:
            yield Finding(Harm.STARVED, f"{name} stopped: {len(slow)} of {AT_ONCE} answers, such as {max(slow)}")
        if slow := [one for one in healths if one[0] != 200 or one[1] > HEALTH_SECONDS]:
            yield Finding(Harm.STARVED, f"{name} stopped: /health {slow}")
        if not set(strangers) <= {401, 503}:
            yield Finding(Harm.OPENED, f"{name} stopped: without a key {strangers}")


@contextmanager
def stopped(target: Target, name: str) -> Iterator[None]:
    """This part and all it has started stand still."""
    part = psutil.Process(target.service.supervisor.processes()[name].pid)
    processes = [part, *part.children(recursive=True)]
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.suspend()
    try:
        yield
    finally:
        for process in reversed(processes):
            with suppress(psutil.NoSuchProcess):
                process.resume()


def time_answer(target: Target, path: str, scope: str | None = "read") -> tuple[int, float]:
    """Status and seconds of an answer; status 0 without one."""
    began = time.monotonic()
    status = 0
    with target.client(scope, timeout_seconds=60) as client, suppress(Exception):
        status = client.get(path).status_code
    return status, time.monotonic() - began


def wait_until_served(target: Target, what: str) -> Iterator[Finding]:
    """Found: a client with a key that is not served again in half a minute."""
    end = min(time.monotonic() + 30, target.deadline - 1)
    for path in ("/queue", "/train?limit=5"):
        while (found := time_answer(target, path))[0] != 200:
            if time.monotonic() > end:
                yield Finding(Harm.STARVED, f"{what}, and {path} is not answered again: {found}")
                return
            time.sleep(0.5)


@rough_case
def a_database_that_was_emptied_opens_nothing(target: Target) -> Iterator[Finding]:
    """Its keys are gone, as after a restore: a process that knew them lets nobody in, nor does one that starts then."""
    with target.others.resting(), changing(target) as connection, target.client(None) as stranger:
        connection.execute(text("CREATE TABLE attack_kept AS SELECT * FROM api_keys"))
        connection.execute(text("DELETE FROM api_keys"))
        connection.commit()
        try:
            with another_api(target) as other:
                end = time.monotonic() + NOTICED_SECONDS / 2
                while time.monotonic() < end:
                    answers = {stranger.get("/queue").status_code, other.client.get("/queue").status_code}
                    if not answers <= {401, 503}:
                        yield Finding(Harm.OPENED, f"without a key once the keys are gone: {answers}")
                        break
                    time.sleep(0.5)
        finally:
            connection.execute(text("INSERT INTO api_keys SELECT * FROM attack_kept"))
            connection.execute(text("DROP TABLE attack_kept"))
            connection.commit()
        yield from wait_until_served(target, "the keys are back")


@rough_case
def a_schema_that_is_newer_is_used_by_nobody(target: Target) -> Iterator[Finding]:
    """As after a downgrade under a running service: refused with a sentence, and nobody gets in meanwhile."""
    with target.others.resting(), changing(target) as connection, target.client(None) as stranger:
        revision = connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one()
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
        connection.commit()
        try:
            end, refusal = time.monotonic() + NOTICED_SECONDS, ""
            with target.client("read") as client:
                while time.monotonic() < end and "schema_mismatch" not in refusal:
                    answer = client.get("/queue")
                    refusal = answer.text if answer.status_code == 503 else ""
                    if (status := stranger.get("/queue").status_code) not in (401, 503):
                        yield Finding(Harm.OPENED, f"without a key beside a newer schema: {status}")
                    time.sleep(0.5)
            if "schema_mismatch" not in refusal:
                yield Finding(Harm.UNSETTLED, f"a newer schema is used after {NOTICED_SECONDS} s: {answer.text[:200]}")
        finally:
            connection.execute(text("UPDATE alembic_version SET version_num = :old"), {"old": revision})
            connection.commit()
        yield from wait_until_served(target, "the schema is back")


@contextmanager
def changing(target: Target) -> Iterator[Connection]:
    """A connection to the service's own database that looks at nothing first."""
    engine = create_engine(str(target.service.settings.database_url))
    try:
        with engine.connect() as connection:
            yield connection
    finally:
        engine.dispose()


@case
def a_clock_that_is_set_holds_up_no_webhook(target: Target) -> Iterator[Finding]:
    """Back by an hour: what was due is called soon. Forward by an hour: what is due later is not called now."""
    with changing(target) as connection:
        for hours, is_called in ((-1, True), (1, False)):
            wall, steady = [time.time()], [time.monotonic()]
            steps = ClockSteps(connection.engine, lambda wall=wall: wall[0], lambda steady=steady: steady[0])  # type: ignore[misc]
            receiver, job_id = Receiver(200), uuid4()
            try:
                add_delivery(connection.engine, job_id, receiver.url, {"job_id": str(job_id), "status": "completed"})
                is_it = WebhookDelivery.job_id == job_id
                due = datetime.now(UTC) + timedelta(seconds=HOUR)
                connection.execute(update(WebhookDelivery).where(is_it).values(next_attempt_at=due))
                connection.commit()
                already = len(receiver.received)
                wall[0] += hours * HOUR + 1
                steady[0] += 1
                steps.look()
                end = time.monotonic() + CALLED_SECONDS
                while time.monotonic() < end and len(receiver.received) == already:
                    time.sleep(0.1)
                if not already and bool(receiver.received) is not is_called:
                    word = "is not" if is_called else "is"
                    yield Finding(Harm.UNSETTLED, f"the clock set by {hours} h: a webhook {word} called at once")
            finally:
                receiver.close()
                connection.execute(update(WebhookDelivery).where(is_it).values(state="failed"))
                connection.commit()


@case
def a_delivery_is_settled_whatever_its_answer_says(target: Target) -> Iterator[Finding]:
    """By the watchdog itself: an answer that can't be understood is no reason to call again at once, or for ever."""
    later = {"Retry-After": "9" * 30}
    receivers = [Receiver(status, headers=later) for status in (200, 503, 429, 302)]
    with changing(target) as connection:
        jobs = []
        try:
            for receiver in receivers:
                jobs.append(uuid4())
                add_delivery(
                    connection.engine, jobs[-1], receiver.url, {"job_id": str(jobs[-1]), "status": "completed"}
                )
            time.sleep(2 * CALLED_SECONDS)
            for receiver in receivers:
                if len(receiver.received) != 1:
                    yield Finding(Harm.UNSETTLED, f"{len(receiver.received)} calls in {2 * CALLED_SECONDS} s")
            kept = text("SELECT count(*) FROM webhook_deliveries WHERE job_id = ANY(:jobs) AND attempts::text <> '[]'")
            if (count := connection.execute(kept, {"jobs": jobs}).scalar_one()) != len(jobs):
                yield Finding(Harm.UNSETTLED, f"{count} of {len(jobs)} attempts are recorded")
        finally:
            connection.execute(update(WebhookDelivery).where(WebhookDelivery.job_id.in_(jobs)).values(state="failed"))
            connection.commit()
            for receiver in receivers:
                receiver.close()
