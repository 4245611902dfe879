"""Every kind of fault, and how each is done to a running service."""

import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress

import psutil

from tests.chaos.additions import BETWEEN_PARTS, COMPLETING
from tests.chaos.aim import Fault
from tests.chaos.chats import PROCESS
from tests.chaos.hands import Hands

STOPPED_SECONDS = 35.0  # longer than a job may be silent
API_PAUSE_SECONDS = 2.0  # until whoever looks after the API starts it again
# What the one who adds files is busy with as the API is killed, and within how many seconds of that.
ADDING = {
    "api killed while adding": ("", 2.0),
    "api killed between parts": (BETWEEN_PARTS, 1.0),
    "api killed at completion": (COMPLETING, 2.0),
}
OWN = {"adding": "tasks.add_data", "generation": PROCESS, "prompts": "tasks.prompts"}
NEARLY = 0.8  # of a job's training, so that MLflow is not back when the adapter is registered

BY_HAND = ("run set by hand", "run deleted")  # a job they hit may have ended by that
# Those that end the process of the job they hit: it is well again once its next attempt has begun.
LETHAL = (
    "trainer killed",
    "trainer told to stop",
    "trainer stopped",
    "worker killed",
    "worker told to stop",
    "check killed",
)


class Faults(Hands):
    """Does faults to a service, one after the other."""

    def do(self, kind: str) -> Fault:
        """Do one and return once it is over, its consequences apart. Raises NoTarget."""
        while True:
            try:
                KINDS[kind](self, kind)
            except psutil.NoSuchProcess:  # it ended by itself a moment before: there will be another one
                self.done.pop()
            else:
                return self.done[-1]

    # -- the kinds

    def signal_part(self, kind: str) -> None:
        """SIGKILL or SIGTERM to one of the stack's parts, which supervisord starts again."""
        name, number = kind.split()[0], _signal_of(kind)
        part = self._wait_for_part(name)
        self._note(kind, f"{part.name}, pid {part.pid}")
        psutil.Process(part.pid).send_signal(number)

    def signal_api(self, kind: str) -> None:
        """SIGKILL or SIGTERM to the API, which is started again after a while."""
        self._note(kind, "api")
        self._restart_api(_signal_of(kind))

    def kill_api_while_adding(self, kind: str) -> None:
        """SIGKILL to the API while a file arrives, in parts or at once, is checked or is published."""
        wanted, seconds = ADDING[kind]

        def find() -> str | None:
            doing = self._adder.busy_with if self._adder else None
            return doing if doing and doing.startswith(wanted) else None

        doing = self._wait(find)
        time.sleep(self._rng.uniform(0, seconds))
        self._note(kind, f"api, {doing}")
        self._restart_api(signal.SIGKILL)

    def _restart_api(self, number: signal.Signals) -> None:
        gone = time.monotonic()
        self._absences.append((gone, float("inf")))
        self._service.api.kill(number)
        time.sleep(API_PAUSE_SECONDS)
        self._service.api.start()
        self._absences[-1] = gone, time.monotonic()

    def signal_own(self, kind: str) -> None:
        """A signal to a process of the API's: the one that checks a file, that answers, or that writes prompts."""
        process = self._wait_for_own(OWN[kind.split()[0]])
        self._note(kind, f"pid {process.pid}", [])
        process.send_signal(_signal_of(kind))

    def kill_checking(self, kind: str) -> None:
        """SIGKILL to a job as it checks its adapter: what is off in this run is on for jobs that begin meanwhile."""
        found = self._wait(self._find_deployment)
        place = f"/deployments/{found}"
        before = self._wait(lambda: self._ask_prefect(place))["job_variables"]
        on = {**before, "env": {**before.get("env", {}), "TUNEYARD_SERVING_CHECK_SECONDS": "200"}}
        self._insist_on_prefect("PATCH", place, {"job_variables": on})
        try:
            job_id, trainer = self._wait(self._find_checking)
            self._note(kind, f"job {job_id}, pid {trainer.pid}", [job_id])
            trainer.kill()
        finally:
            self._insist_on_prefect("PATCH", place, {"job_variables": before})

    def _find_checking(self) -> tuple[str, psutil.Process] | None:
        """A job whose process checks what it will register."""
        for job_id, trainer in self._service.find_trainers().items():
            job = self._look(job_id)
            if job and job.phase == "checking":
                return job_id, trainer
        return None

    def signal_trainer(self, kind: str) -> None:
        """A signal to the process of a job."""
        job_id, trainer = self._wait_for_trainer()
        self._note(kind, f"job {job_id}, pid {trainer.pid}", [job_id])
        trainer.send_signal(_signal_of(kind))

    def stop_worker(self, kind: str) -> None:
        """SIGSTOP to a worker for longer than a heartbeat, then SIGCONT."""
        part = self._wait_for_part("worker")
        self._note(kind, f"{part.name}, pid {part.pid}")
        process = psutil.Process(part.pid)
        process.suspend()
        try:
            time.sleep(STOPPED_SECONDS)
        finally:
            with suppress(psutil.NoSuchProcess):
                process.resume()

    def restart_database(self, kind: str) -> None:
        """PostgreSQL is shut down as for an update, and started."""
        self._wait_for_part("postgres")
        self._note(kind, "postgres")
        self._service.supervisor.stop("postgres")
        self._service.supervisor.start("postgres")

    def kill_mlflow(self, kind: str) -> None:
        """SIGKILL to MLflow as a job is about to register; it takes some ten seconds to come back."""
        part = self._wait_for_part("mlflow")
        job_id = self._wait(self._find_nearly_done)
        self._note(kind, f"{part.name}, pid {part.pid}", [job_id])
        psutil.Process(part.pid).kill()

    def _find_nearly_done(self) -> str | None:
        """A job near the end of its training, or behind it."""
        for job_id in self._service.find_trainers():
            job = self._look(job_id)
            if job and job.status == "running" and (job.step or 0) >= NEARLY * job.total_steps:
                return job_id
        return None


def _signal_of(kind: str) -> signal.Signals:
    if kind.endswith("killed"):
        return signal.SIGKILL
    return signal.SIGTERM if kind.endswith("told to stop") else signal.SIGSTOP


KINDS: dict[str, Callable[[Faults, str], None]] = {
    "trainer killed": Faults.signal_trainer,
    "worker killed": Faults.signal_part,
    "api killed": Faults.signal_api,
    "watchdog killed": Faults.signal_part,
    "prefect killed": Faults.signal_part,
    "trainer told to stop": Faults.signal_trainer,
    "postgres restarted": Faults.restart_database,
    "mlflow killed": Faults.kill_mlflow,
    "run retried": Faults.retry_run,
    "deployment deleted": Faults.delete_deployment,
    "api killed while adding": Faults.kill_api_while_adding,
    "generation killed": Faults.signal_own,
    "run set by hand": Faults.set_state,
    "experiment deleted": Faults.delete_experiment,
    "run deleted": Faults.delete_run,
    "run paused": Faults.pause_run,
    "adding killed": Faults.signal_own,
    "generation stopped": Faults.signal_own,
    "prompts killed": Faults.signal_own,
    "api killed between parts": Faults.kill_api_while_adding,
    "api killed at completion": Faults.kill_api_while_adding,
    "check killed": Faults.kill_checking,
    "pool paused": Faults.change_pool,
    "pool limited": Faults.change_pool,
    "pool deleted": Faults.delete_pool,
    "queue paused": Faults.change_queue,
    "queue deleted": Faults.delete_queue,
    "deployment paused": Faults.pause_deployment,
    "tracking run deleted": Faults.delete_tracking_run,
    "model deleted": Faults.delete_model,
    "worker told to stop": Faults.signal_part,
    "api told to stop": Faults.signal_api,
    "watchdog told to stop": Faults.signal_part,
    "prefect told to stop": Faults.signal_part,
    "worker stopped": Faults.stop_worker,
    "trainer stopped": Faults.signal_trainer,
}


def draw_kinds(count: int, rng: random.Random) -> list[str]:
    """Kinds in random order: the first ones of `KINDS` if there are fewer than all, else all of them in turn."""
    kinds: list[str] = []
    while len(kinds) < count:
        some = [*KINDS][: count - len(kinds)]
        kinds += rng.sample(some, len(some))
    return kinds
