# Generated from async_client.py by client/generate_sync.py; do not edit.
"""`Tuneyard`: the blocking client."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Self, TypeVar, Unpack

import httpx

from tuneyard_client import answer_calls, calls, operations, responses
from tuneyard_client.calls import Call, Pause, Steps
from tuneyard_client.folders import check_free
from tuneyard_client.models import AnswerOptions, ChatOptions, Config, JobFilters, Messages
from tuneyard_client.operations import DEFAULT_TIMEOUT_SECONDS, POLL_SECONDS
from tuneyard_client.reading import check
from tuneyard_client.retries import Attempts, unreachable
from tuneyard_client.streams import AdapterArchive, EventReader, LineReader
from tuneyard_client.sync_configs import Configs
from tuneyard_client.sync_datasets import Datasets
from tuneyard_client.sync_models import BaseModels
from tuneyard_client.waiting import run, sleep
from tuneyard_wire.completions import ChatChunk, ChatCompletion, Completion
from tuneyard_wire.deliveries import Delivery
from tuneyard_wire.fields import SftOptions, Strategy, TrainingFields
from tuneyard_wire.jobs import Cancelled, Queue, Submitted, TrainJob
from tuneyard_wire.openai import OpenAIModel
from tuneyard_wire.plan import Plan
from tuneyard_wire.records import Checkpoint, JobEvent, LogLine, Metrics

T = TypeVar("T")


class Tuneyard:
    """A connection to a Tuneyard service. The methods of AsyncTuneyard are awaited; Tuneyard is thread-safe.

    Requests that are safe to repeat are retried after a lost connection, and after a 429 or 503 with `Retry-After`.
    Submissions are safe, since each carries an idempotency key.

    Args:
        base_url: URL of the service; if None `TUNEYARD_URL`, or else this machine.
        api_key: Sent as a bearer token; `TUNEYARD_API_KEY` if None.
        timeout_seconds: Read timeout in seconds.

    Raises:
        ClientError: from every method, with `status`, `code`, `detail` and `request_id`; see
            `tuneyard_client.errors` for its subclasses.
    """

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
    ) -> None:
        self._http = operations.open_http(httpx.Client, base_url, api_key, timeout_seconds)
        self.configs = Configs(self._run)
        self.datasets = Datasets(self._run, self._follow, self._stream, self._http)
        self.base_models = BaseModels(self._run, self._follow)

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
        """Submit a job with the Training API's field names: `train(model_name="gpt2", dataset_version="v1.0")`.

        With `strict` a job that is known to fail, such as one whose model does not exist, raises NotFound or
        InvalidRequest; without it the job is created and the response has `warnings`.
        """
        return self.submit(fields, strategy, idempotency_key, strict)

    def submit(
        self,
        fields: TrainingFields | Mapping[str, Any],
        strategy: Strategy = "queue",
        idempotency_key: str | None = None,
        strict: bool = True,
    ) -> Submitted:
        """`train`, with the fields in a mapping."""
        return self._run(calls.submit(fields, strategy, idempotency_key, strict))

    def sft(
        self,
        config: Config | None = None,
        *,
        strategy: Strategy = "queue",
        idempotency_key: str | None = None,
        strict: bool = True,
        **options: Unpack[SftOptions],
    ) -> Submitted:
        """Submit a job with the SFT API's field names. With `config_id`, `config` overrides the saved fields."""
        return self._run(calls.sft(config, idempotency_key, strategy, strict, **options))

    def plan(self, fields: TrainingFields | Mapping[str, Any], device: str | None = None) -> Plan:
        """Estimate a job, given with the Training API's field names, without creating it.

        `device` names another device to plan for, such as `h100-80gb`.
        """
        return self._run(calls.plan(fields, device))

    def plan_sft(
        self, config: Config | None = None, *, device: str | None = None, **options: Unpack[SftOptions]
    ) -> Plan:
        """Estimate a job, given with the SFT API's field names. With `config_id`, `config` overrides saved fields."""
        return self._run(calls.plan_sft(config, device, **options))

    def job(self, job_id: str) -> TrainJob:
        """Get a job."""
        return self._run(calls.job(job_id))

    def jobs(self, *, limit: int | None = None, **filters: Unpack[JobFilters]) -> list[TrainJob]:
        """List jobs, newest first: all of them, or the first `limit`."""
        return self._follow(calls.jobs(limit, filters))

    def cancel(self, job_id: str) -> Cancelled:
        """Cancel a queued or running job."""
        return self._run(calls.cancel(job_id))

    def queue(self) -> Queue:
        """Get the queue: the running job and those that wait."""
        return self._run(calls.queue())

    def wait(
        self,
        job_id: str,
        timeout_seconds: float | None = None,
        on_progress: Callable[[TrainJob], None] | None = None,
        poll_seconds: float = POLL_SECONDS,
    ) -> TrainJob:
        """Wait until a job has completed, failed or been cancelled; returns it. Changes are passed to `on_progress`.

        Raises:
            WaitTimeout: the job did not end within `timeout_seconds`.
        """
        return self._follow(operations.wait(job_id, timeout_seconds, on_progress, poll_seconds))

    def events(self, job_id: str, last_event_id: str | None = None) -> Iterator[JobEvent]:
        """Yield a job's events, all or those after `last_event_id`, up to `end`. Reconnects automatically."""
        reader = EventReader(job_id, last_event_id)
        while not reader.has_ended:
            try:
                with self._stream(reader.connect()) as response:
                    if response.status_code == httpx.codes.NO_CONTENT:  # nothing comes after last_event_id
                        return
                    decoder = responses.new_decoder()
                    for chunk in response.iter_bytes():
                        for event in reader.feed(decoder.decode(chunk)):
                            yield event
            except httpx.TransportError:
                pass
            if not reader.has_ended:
                sleep(reader.pause_after_loss())

    def logs(self, job_id: str, follow: bool = False, tail: int | None = None) -> Iterator[LogLine]:
        """Yield the lines of a job's log, or the last `tail`; with `follow` also new ones until the job ends."""
        reader, decoder = LineReader(), responses.new_decoder()
        try:
            with self._stream(calls.logs_request(job_id, follow, tail)) as response:
                for chunk in response.iter_bytes():
                    for line in reader.feed(decoder.decode(chunk)):
                        yield calls.read_log_line(line)
        except httpx.TransportError as error:
            raise unreachable(error, self._http.base_url) from error
        for line in reader.finish():
            yield calls.read_log_line(line)

    def metrics(self, job_id: str) -> Metrics:
        """Get the job's metrics: (step, value) pairs by name."""
        return self._run(calls.metrics(job_id))

    def deliveries(self, job_id: str) -> list[Delivery]:
        """List the job's webhook deliveries, sent and pending."""
        return self._run(calls.deliveries(job_id))

    def resend(self, job_id: str, delivery_id: str) -> Delivery:
        """Send a webhook delivery again."""
        return self._run(calls.resend(job_id, delivery_id))

    def checkpoints(self, job_id: str) -> list[Checkpoint]:
        """List the job's stored checkpoints."""
        return self._run(calls.checkpoints(job_id))

    def download_adapter(self, job_id: str, folder: str | Path, part: Literal["adapter", "merged"] = "adapter") -> Path:
        """Download a completed job's adapter into `folder`, which is created; returns it.

        Args:
            part: `merged` for the merged model of a job with `save_merged_model`.

        Raises:
            NotFound: the job has no merged model, or its files are gone.
            Conflict: the job has not completed.
            ChecksumMismatch: the download is damaged.
            ClientError: the folder is not empty.
        """
        check_free(Path(folder))
        try:
            with self._stream(calls.adapter_request(job_id, part)) as response:
                with AdapterArchive(response.headers) as archive:
                    for chunk in response.iter_bytes():
                        archive.write(chunk)
                    return run(archive.unpack, Path(folder))
        except httpx.TransportError as error:
            raise unreachable(error, self._http.base_url) from error

    def models(self) -> list[OpenAIModel]:
        """List the models that can be asked: base models, and versions of adapters, newest first."""
        return self._run(answer_calls.models())

    def model(self, model_id: str) -> OpenAIModel:
        """Get a base model, `NAME@VERSION` of an adapter, or `NAME` for its latest version."""
        return self._run(answer_calls.model(model_id))

    def chat(self, model_id: str, messages: Messages, **options: Unpack[ChatOptions]) -> ChatCompletion:
        """Ask a model: `chat("handbook", [{"role": "user", "content": "Hello"}], temperature=0)`."""
        return self._run(answer_calls.chat(model_id, messages, options))

    def stream_chat(self, model_id: str, messages: Messages, **options: Unpack[ChatOptions]) -> Iterator[ChatChunk]:
        """`chat` that yields what is new of the answers while they are generated."""
        reader, decoder = LineReader(), responses.new_decoder()
        try:
            with self._stream(answer_calls.chat_request(model_id, messages, options)) as response:
                for chunk in response.iter_bytes():
                    for line in reader.feed(decoder.decode(chunk)):
                        if found := answer_calls.read_chat_line(line):
                            yield found
        except httpx.TransportError as error:
            raise unreachable(error, self._http.base_url) from error

    def complete(self, model_id: str, prompt: str, **options: Unpack[AnswerOptions]) -> Completion:
        """Continue a text."""
        return self._run(answer_calls.complete(model_id, prompt, options))

    def _run(self, call: Call[T]) -> T:
        return call.read(check(self._send(call)))

    def _follow(self, steps: Steps[T]) -> T:
        result: Any = None
        while True:
            try:
                step = steps.send(result)
            except StopIteration as done:
                return done.value  # type: ignore[no-any-return]  # StopIteration.value is untyped
            if isinstance(step, Pause):
                sleep(step.seconds)
            else:
                result = self._run(step)

    @contextmanager
    def _stream(self, call: Call[Any]) -> Iterator[httpx.Response]:
        response = self._send(call, stream=True)
        try:
            yield check(response)
        finally:
            response.close()

    def _send(self, call: Call[Any], stream: bool = False) -> httpx.Response:
        attempts = Attempts(call)
        while True:
            outcome: httpx.Response | httpx.TransportError
            with operations.opened_upload(call) as file:
                try:
                    outcome = self._http.send(operations.build_request(self._http, call, file), stream=True)
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
    def _read(response: httpx.Response, is_whole: bool) -> None:
        try:
            responses.bound(response, is_whole)
            if is_whole:
                response.read()
        except BaseException:
            response.close()
            raise
