# Written by client/generate_sync.py from async_client.py: change that one.
"""`Tuneyard`: the service from Python."""

import builtins
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self, TypeVar, Unpack

import httpx

from tuneyard_client import answers, calls, operations
from tuneyard_client.calls import Call, Pause, Run, Steps
from tuneyard_client.folders import check_free
from tuneyard_client.models import Config, JobFilters
from tuneyard_client.operations import DEFAULT_TIMEOUT_SECONDS, POLL_SECONDS
from tuneyard_client.reading import check
from tuneyard_client.retries import Attempts, unreachable
from tuneyard_client.streams import AdapterArchive, EventReader, LineReader
from tuneyard_client.waiting import run, sleep
from tuneyard_wire.configs import ConfigVersion, SavedConfig
from tuneyard_wire.deliveries import Delivery
from tuneyard_wire.fields import AroundConfig, Strategy, TrainingFields
from tuneyard_wire.jobs import Cancelled, Queue, Submitted, TrainJob
from tuneyard_wire.plan import Plan
from tuneyard_wire.records import Checkpoint, JobEvent, LogLine, Metrics

T = TypeVar("T")


class Tuneyard:
    """A connection to a Tuneyard service. The methods of AsyncTuneyard are awaited; Tuneyard is thread-safe.

    What is safe to send twice is sent again after a lost connection, and after a 429 or 503 that names a time; a
    submission is safe, since each carries an idempotency key.

    Args:
        base_url: Where the service is; `TUNEYARD_URL`, or else this machine, if None.
        api_key: Sent as a bearer token; `TUNEYARD_API_KEY` if None.
        timeout_seconds: Read timeout in seconds.

    Raises:
        ClientError: from every method, with `status`, `code`, `detail` and `request_id`; see
            `tuneyard_client.errors` for its kinds.
    """

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
    ) -> None:
        self._http = httpx.Client(**operations.connection_settings(base_url, api_key, timeout_seconds))
        self.configs = Configs(self._run)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def train(
        self,
        *,
        strategy: Strategy = "queue",
        idempotency_key: str | None = None,
        strict: bool = True,
        **fields: Unpack[TrainingFields],
    ) -> Submitted:
        """Make a job, in the Training API's words: `train(model_name="gpt2", dataset_version="v1.0")`.

        With `strict` a job that is known to fail, such as one of a model that is nowhere, is refused as a NotFound or
        InvalidRequest; without it the job is made and `warnings` of the answer say so.
        """
        return self.submit(fields, strategy, idempotency_key, strict)

    def submit(
        self,
        fields: TrainingFields | Mapping[str, Any],
        strategy: Strategy = "queue",
        idempotency_key: str | None = None,
        strict: bool = True,
    ) -> Submitted:
        """`train`, the fields in a mapping."""
        return self._run(calls.submit(fields, strategy, idempotency_key, strict))

    def sft(
        self,
        config: Config | None = None,
        *,
        strategy: Strategy = "queue",
        idempotency_key: str | None = None,
        strict: bool = True,
        **around: Unpack[AroundConfig],
    ) -> Submitted:
        """Make a job, in the SFT API's words. With `config_id`, `config` overrides the saved one's fields."""
        return self._run(calls.sft(config, idempotency_key, strategy, strict, **around))

    def plan(self, fields: TrainingFields | Mapping[str, Any]) -> Plan:
        """Estimate a job in the Training API's field names. No job is made."""
        return self._run(calls.plan(fields))

    def plan_sft(self, config: Config | None = None, **around: Unpack[AroundConfig]) -> Plan:
        """Estimate a job in the SFT API's field names. With `config_id`, `config` overrides its fields."""
        return self._run(calls.plan_sft(config, **around))

    def job(self, job_id: str) -> TrainJob:
        """One job."""
        return self._run(calls.job(job_id))

    def jobs(self, *, limit: int | None = None, **filters: Unpack[JobFilters]) -> list[TrainJob]:
        """Jobs, newest first: all of them, or the first `limit`."""
        return self._follow(calls.jobs(limit, filters))

    def cancel(self, job_id: str) -> Cancelled:
        """Cancel a queued or running job."""
        return self._run(calls.cancel(job_id))

    def queue(self) -> Queue:
        """The queue of jobs."""
        return self._run(calls.queue())

    def wait(
        self,
        job_id: str,
        timeout_seconds: float | None = None,
        on_progress: Callable[[TrainJob], None] | None = None,
        poll_seconds: float = POLL_SECONDS,
    ) -> TrainJob:
        """The job once it has ended, however it has; `on_progress` is called with it whenever it has changed.

        Raises:
            WaitTimeout: it had not ended in `timeout_seconds`.
        """
        return self._follow(operations.wait(job_id, timeout_seconds, on_progress, poll_seconds))

    def events(self, job_id: str, last_event_id: str | None = None) -> Iterator[JobEvent]:
        """Events of a job from the first, or after `last_event_id`, to its `end`; reconnects automatically."""
        reader = EventReader(job_id, last_event_id)
        while not reader.has_ended:
            try:
                with self._stream(reader.connect()) as answer:
                    if answer.status_code == httpx.codes.NO_CONTENT:  # nothing comes after last_event_id
                        return
                    decoder = answers.new_decoder()
                    for chunk in answer.iter_bytes():
                        for event in reader.feed(decoder.decode(chunk)):
                            yield event
            except httpx.TransportError:
                pass
            if not reader.has_ended:
                sleep(reader.pause_after_loss())

    def logs(self, job_id: str, follow: bool = False, tail: int | None = None) -> Iterator[LogLine]:
        """Lines of a job's log, the last `tail` only if given; with `follow` also those to come, until it has ended."""
        reader, decoder = LineReader(), answers.new_decoder()
        try:
            with self._stream(calls.logs_request(job_id, follow, tail)) as answer:
                for chunk in answer.iter_bytes():
                    for line in reader.feed(decoder.decode(chunk)):
                        yield calls.read_log_line(line)
        except httpx.TransportError as error:
            raise unreachable(error, self._http.base_url) from error
        for line in reader.finish():
            yield calls.read_log_line(line)

    def metrics(self, job_id: str) -> Metrics:
        """What was measured, by name: (step, value) pairs."""
        return self._run(calls.metrics(job_id))

    def deliveries(self, job_id: str) -> list[Delivery]:
        """The job's webhook deliveries, sent and pending."""
        return self._run(calls.deliveries(job_id))

    def resend(self, job_id: str, delivery_id: str) -> Delivery:
        """Send a webhook delivery again."""
        return self._run(calls.resend(job_id, delivery_id))

    def checkpoints(self, job_id: str) -> list[Checkpoint]:
        """The checkpoints that are kept."""
        return self._run(calls.checkpoints(job_id))

    def download_adapter(self, job_id: str, folder: str | Path) -> Path:
        """Make `folder` of a completed job's adapter; returns it.

        Raises:
            Conflict: the job has not completed.
            ChecksumMismatch: the download is damaged.
            ClientError: the folder is not empty.
        """
        check_free(Path(folder))
        try:
            with self._stream(calls.adapter_request(job_id)) as answer:
                with AdapterArchive(answer.headers) as archive:
                    for chunk in answer.iter_bytes():
                        archive.write(chunk)
                    return run(archive.unpack, Path(folder))
        except httpx.TransportError as error:
            raise unreachable(error, self._http.base_url) from error

    def _run(self, call: Call[T]) -> T:
        return call.read(check(self._send(call)))

    def _follow(self, steps: Steps[T]) -> T:
        result: Any = None
        while True:
            try:
                step = steps.send(result)
            except StopIteration as done:
                return done.value  # type: ignore[no-any-return]  # StopIteration knows no type
            if isinstance(step, Pause):
                sleep(step.seconds)
            else:
                result = self._run(step)

    @contextmanager
    def _stream(self, call: Call[Any]) -> Iterator[httpx.Response]:
        answer = self._send(call, stream=True)
        try:
            yield check(answer)
        finally:
            answer.close()

    def _send(self, call: Call[Any], stream: bool = False) -> httpx.Response:
        attempts = Attempts(call)
        while True:
            outcome: httpx.Response | httpx.TransportError
            try:
                outcome = self._http.send(operations.request_of(self._http, call), stream=True)
                self._read(outcome, is_whole=not stream or not outcome.is_success)
            except httpx.TransportError as error:
                outcome = error
            pause = attempts.pause_after(outcome)
            if pause is not None:
                sleep(pause)
            elif isinstance(outcome, httpx.TransportError):
                raise unreachable(outcome, self._http.base_url) from outcome
            else:
                return outcome

    @staticmethod
    def _read(answer: httpx.Response, is_whole: bool) -> None:
        try:
            answers.bound(answer, is_whole)
            if is_whole:
                answer.read()
        except BaseException:
            answer.close()
            raise


class Configs:
    """Saved configurations."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def save(self, name: str, config: Config) -> SavedConfig:
        """Save a configuration, complete or partial."""
        return self._run(calls.save_config(name, config))

    def list(self, name: str | None = None, id_prefix: str | None = None) -> builtins.list[SavedConfig]:
        """Those of this name, or with ids that begin so, or all; oldest first."""
        return self._run(calls.list_configs(name, id_prefix))

    def get(self, config_id: str) -> SavedConfig:
        """One, as it is now."""
        return self._run(calls.get_config(config_id))

    def update(self, config_id: str, name: str, config: Config) -> SavedConfig:
        """Save a new version of a configuration."""
        return self._run(calls.update_config(config_id, name, config))

    def delete(self, config_id: str) -> None:
        """Delete a configuration. Jobs that were made from it are kept."""
        self._run(calls.delete_config(config_id))

    def versions(self, config_id: str) -> builtins.list[ConfigVersion]:
        """Every version of a configuration, the first one first."""
        return self._run(calls.config_versions(config_id))
