"""Other people's hands as faults: what anybody may do in Prefect's and MLflow's pages."""

import time
from contextlib import suppress
from typing import Any

import httpx

from tests.chaos.aim import Aim

PAUSED_SECONDS = 12.0
EXPERIMENT = "tuneyard"


class Hands(Aim):
    """Does what people do."""

    def retry_run(self, kind: str) -> None:
        """*Retry* on a job that has ended."""
        job_id = self._wait(lambda: self._pick(lambda sight: sight.has_ended))
        self._note(kind, f"job {job_id}", [job_id])
        self._set_state(job_id, "SCHEDULED", "AwaitingRetry")

    def set_state(self, kind: str) -> None:
        """A job at work is set to an end that it has not come to."""
        job_id, _ = self._wait_for_trainer()
        state = self._rng.choice(["COMPLETED", "FAILED", "CANCELLED"])
        self._note(kind, f"job {job_id}, {state}", [job_id])
        self._set_state(job_id, state, state.title())

    def pause_run(self, kind: str) -> None:
        """A job at work is paused, and resumed after a while."""
        job_id, _ = self._wait_for_trainer()
        self._note(kind, f"job {job_id}", [job_id])
        self._set_state(job_id, "PAUSED", "Paused")
        time.sleep(PAUSED_SECONDS)
        if (sight := self._look(job_id)) is None or not sight.has_ended:
            self._set_state(job_id, "RUNNING", "Running")

    def delete_run(self, kind: str) -> None:
        """The run of a job is deleted, at work or waiting."""
        job_id = self._wait(lambda: self._pick(lambda sight: not sight.has_ended))
        self._note(kind, f"job {job_id}", [job_id])
        self._watcher.unlisted.add(job_id)
        self._service.prefect.delete(f"/flow_runs/{self._service.run_of(job_id)}")

    def delete_deployment(self, kind: str) -> None:
        """The deployment is deleted, and with it the runs of all jobs that wait."""
        found = self._wait(self._find_deployment)
        self._note(kind, "finetune/sft")
        self._service.prefect.delete(f"/deployments/{found}")

    def change_pool(self, kind: str) -> None:
        """The work pool is paused for a while, or gets a concurrency limit of 0."""
        self._change_for_a_while(kind, self._pool, "the work pool")

    def change_queue(self, kind: str) -> None:
        """A work queue is paused for a while."""
        queue = self._wait(self._find_queue)
        self._change_for_a_while(kind, f"{self._pool}/queues/{queue}", f"the queue {queue}")

    def pause_deployment(self, kind: str) -> None:
        """The deployment is paused for a while."""
        found = self._wait(self._find_deployment)
        self._note(kind, "finetune/sft")
        self._insist_on_prefect("POST", f"/deployments/{found}/pause_deployment")
        time.sleep(PAUSED_SECONDS)
        self._insist_on_prefect("POST", f"/deployments/{found}/resume_deployment")

    def delete_pool(self, kind: str) -> None:
        """The work pool is deleted, and with it its queues."""
        self._note(kind, "the work pool")
        self._insist_on_prefect("DELETE", self._pool)

    def delete_queue(self, kind: str) -> None:
        """A work queue is deleted."""
        queue = self._wait(self._find_queue)
        self._note(kind, f"the queue {queue}")
        self._insist_on_prefect("DELETE", f"{self._pool}/queues/{queue}")

    def delete_experiment(self, kind: str) -> None:
        """MLflow's experiment is deleted, with all runs in it."""
        found = self._wait(self._find_experiment)
        self._note(kind, "the experiment")
        self._ask_mlflow("POST", "experiments/delete", json={"experiment_id": found})

    def delete_tracking_run(self, kind: str) -> None:
        """The MLflow run of a job at work is deleted."""
        found = self._wait(self._find_tracking_run)
        self._note(kind, f"MLflow's run {found}")
        self._ask_mlflow("POST", "runs/delete", json={"run_id": found})

    def delete_model(self, kind: str) -> None:
        """A registered model is deleted, with all its versions."""
        found = self._wait(self._find_model)
        self._note(kind, f"the registered model {found}")
        with suppress(httpx.HTTPError):
            self.erased += [version.tags for version in self._service.read_versions() if version.name == found]
        self._ask_mlflow("DELETE", "registered-models/delete", json={"name": found})

    # -- where things are

    @property
    def _pool(self) -> str:
        return f"/work_pools/{self._service.settings.work_pool}"

    def _change_for_a_while(self, kind: str, path: str, what: str) -> None:
        before = self._wait(lambda: self._ask_prefect(path))
        self._note(kind, what)
        change = {"is_paused": True} if kind.endswith("paused") else {"concurrency_limit": 0}
        self._insist_on_prefect("PATCH", path, change)
        time.sleep(PAUSED_SECONDS)
        self._insist_on_prefect("PATCH", path, {name: before[name] for name in change})

    def _find_queue(self) -> str | None:
        """One of those that jobs wait in: not the pool's own, which can't be deleted."""
        try:
            found = self._service.prefect.post(f"{self._pool}/queues/filter", json={}).raise_for_status().json()
        except httpx.HTTPError:
            return None
        names = [queue["name"] for queue in found if queue["name"] != "default"]
        return self._rng.choice(names) if names else None

    def _find_deployment(self) -> str | None:
        found = self._ask_prefect("/deployments/name/finetune/sft")
        return str(found["id"]) if found else None

    def _find_experiment(self) -> str | None:
        found = self._ask_mlflow("GET", "experiments/get-by-name", params={"experiment_name": EXPERIMENT})
        return str(found["experiment"]["experiment_id"]) if found else None

    def _find_tracking_run(self) -> str | None:
        wanted = {"experiment_ids": [self._find_experiment()], "filter": "attributes.status = 'RUNNING'"}
        found = self._ask_mlflow("POST", "runs/search", json=wanted)
        ids = [run["info"]["run_id"] for run in (found or {}).get("runs", [])]
        return str(self._rng.choice(ids)) if ids else None

    def _find_model(self) -> str | None:
        found = self._ask_mlflow("GET", "registered-models/search", params={"max_results": 100})
        names = [model["name"] for model in (found or {}).get("registered_models", [])]
        return str(self._rng.choice(names)) if names else None

    # -- how they are asked

    def _ask_prefect(self, path: str) -> dict[str, Any] | None:
        try:
            answer = self._service.prefect.get(path)
        except httpx.HTTPError:
            return None
        return dict(answer.json()) if answer.is_success else None

    def _insist_on_prefect(self, method: str, path: str, body: dict[str, Any] | None = None) -> None:
        """Ask until it is done, or what is asked of is gone."""

        def ask() -> bool | None:
            with suppress(httpx.HTTPError):
                answer = self._service.prefect.request(method, path, json=body)
                return answer.is_success or answer.status_code == httpx.codes.NOT_FOUND or None
            return None

        self._wait(ask)

    def _set_state(self, job_id: str, kind: str, name: str) -> None:
        body = {"state": {"type": kind, "name": name}, "force": True}
        with suppress(httpx.HTTPError):  # Prefect is away just then, or the run is gone
            self._service.prefect.post(f"/flow_runs/{self._service.run_of(job_id)}/set_state", json=body)

    def _ask_mlflow(self, method: str, path: str, **what: Any) -> dict[str, Any] | None:
        address = f"{self._service.settings.mlflow_tracking_uri}/api/2.0/mlflow/{path}"
        try:
            answer = httpx.request(method, address, timeout=30, trust_env=False, **what)
        except httpx.HTTPError:  # it is away just then
            return None
        return dict(answer.json()) if answer.is_success else None
