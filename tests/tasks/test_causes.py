"""What a job raised, told as a code and a sentence. The errors are real ones wherever they can be provoked."""

import errno
import subprocess
import sys
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from typing import Any

import httpx
import psycopg2
import pytest
import sqlalchemy
import torch
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from prefect.exceptions import PrefectHTTPStatusError
from safetensors import SafetensorError

from jobs.errors import RegistryUnavailable
from sft.errors import DatasetNotFound, DiskFull, InvalidConfig, StackError, TrainingDiverged
from tasks.causes import Cause, explain
from tests.conftest import free_port

HUGE = 10**15  # elements


@pytest.fixture(autouse=True)
def no_retries(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


def raised_by(act: Callable[[], Any]) -> Exception:
    try:
        act()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def chained(inner: BaseException, outer: Exception, *, is_explicit: bool = True) -> Exception:
    def act():
        try:
            raise inner
        except BaseException as error:
            if is_explicit:
                raise outer from error
            raise outer  # noqa: B904 - while handling, as a careless library does

    return raised_by(act)


@pytest.mark.parametrize(
    ("error", "is_worth_retrying"),
    [
        (InvalidConfig("lora_r must be positive, got 0"), False),
        (TrainingDiverged("the loss rose"), False),
        (DiskFull("no space left in /out"), False),
        (StackError("process 1 of the 2 that train has died"), True),
        (RegistryUnavailable("MLflow did not answer"), True),
    ],
)
def test_our_own_errors_keep_their_code_and_their_words(error, is_worth_retrying):
    assert explain(error) == Cause(error.code, str(error), is_worth_retrying)
    assert explain(chained(error, RuntimeError("while cleaning up"), is_explicit=False)).code == error.code
    assert explain(ExceptionGroup("tasks", [error])).code == error.code


def test_an_allocation_that_fails_is_out_of_memory_and_names_the_remedies():
    error = raised_by(lambda: torch.empty(HUGE))
    cause = explain(error)
    assert (cause.code, cause.is_worth_retrying) == ("out_of_memory", False)
    for word in ("you tried to allocate", "batch_size", "cutoff_len", "gradient_checkpointing"):
        assert word in cause.message
    assert "\n" not in cause.message


@pytest.mark.parametrize(
    "error",
    [
        raised_by(lambda: bytearray(2**60)),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79 GiB"),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:75] DefaultCPUAllocator: not enough memory: you tried to allocate"
        ),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        chained(MemoryError(), RuntimeError("the batch could not be made")),
    ],
)
def test_memory_that_has_run_out_is_known_by_any_of_its_errors(error):
    assert explain(error).code == "out_of_memory"


def test_a_full_disk_is_told_wherever_in_the_chain_it_is():
    def write():
        with open("/dev/full", "w") as file:  # noqa: PTH123
            file.write("x")

    error = raised_by(write)
    assert error.errno == errno.ENOSPC
    cause = explain(error)
    assert (cause.code, cause.is_worth_retrying) == ("disk_full", False)
    assert "No space left" in cause.message
    assert explain(chained(error, DatasetNotFound("it could not be fetched"))).code == "disk_full"
    assert explain(chained(error, ValueError("torn"), is_explicit=False)).code == "disk_full"
    told = explain(chained(error, DiskFull("no space left in /out: the adapter needs 3 MB")))
    assert told.message == "no space left in /out: the adapter needs 3 MB"


def test_a_disk_full_while_safetensors_writes_is_one(small_disk):
    from safetensors.torch import save_file

    error = raised_by(lambda: save_file({"weight": torch.zeros(10**6)}, small_disk / "model.safetensors"))
    assert isinstance(error, SafetensorError | OSError)
    assert explain(error).code == "disk_full"


def test_a_quota_and_a_full_disk_of_the_database_are_full_disks():
    assert explain(OSError(errno.EDQUOT, "Disk quota exceeded")).code == "disk_full"
    assert explain(refused_statement(psycopg2.errors.DiskFull("could not extend file"))).code == "disk_full"


def refused_statement(answer: psycopg2.Error) -> Exception:
    return chained(answer, sqlalchemy.exc.OperationalError("INSERT", {}, answer))


def test_a_closed_port_in_place_of_mlflow_is_an_unavailable_registry():
    uri = f"http://127.0.0.1:{free_port()}"
    cause = explain(raised_by(lambda: MlflowClient(uri).get_experiment_by_name("tuneyard")))
    assert (cause.code, cause.is_worth_retrying) == ("registry_unavailable", True)
    assert "tuneyard status" in cause.message


class Answer(BaseHTTPRequestHandler):
    status = 500

    def do_GET(self):
        code = "PERMISSION_DENIED" if self.status == HTTPStatus.FORBIDDEN else "INTERNAL_ERROR"
        self.send_response(self.status)
        self.end_headers()
        self.wfile.write(f'{{"error_code": "{code}", "message": "no"}}'.encode())

    def log_message(self, *args):
        """Nothing to stderr."""


@pytest.mark.parametrize(("status", "code"), [(500, "registry_unavailable"), (501, "registry_unavailable"),
                                              (503, "registry_unavailable"), (403, "internal_error")])  # fmt: skip
def test_an_mlflow_that_fails_is_away_and_one_that_refuses_is_not(status, code):
    server = HTTPServer(("127.0.0.1", 0), type("Fixed", (Answer,), {"status": status}))
    Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        client = MlflowClient(f"http://127.0.0.1:{server.server_port}")
        assert explain(raised_by(lambda: client.get_experiment_by_name("tuneyard"))).code == code
    finally:
        server.shutdown()
        server.server_close()


def test_what_mlflow_refuses_by_itself_is_no_unavailable_registry():
    assert explain(MlflowException("Unable to parse the filter")).code == "internal_error"


def test_a_closed_port_in_place_of_the_database_is_an_unavailable_stack():
    url = f"postgresql+psycopg2://someone:hidden-word@127.0.0.1:{free_port()}/tuneyard"
    cause = explain(raised_by(lambda: sqlalchemy.create_engine(url).connect()))
    assert (cause.code, cause.is_worth_retrying) == ("stack_unavailable", True)
    assert "Connection refused" in cause.message
    assert "hidden-word" not in cause.message
    assert explain(raised_by(lambda: psycopg2.connect(f"host=127.0.0.1 port={free_port()}"))).code == cause.code


def test_a_database_that_refuses_a_statement_is_there():
    assert explain(refused_statement(psycopg2.errors.LockNotAvailable("locked"))).code == "internal_error"
    assert explain(refused_statement(psycopg2.errors.AdminShutdown("terminating"))).code == "stack_unavailable"


def test_prefect_out_of_reach_is_an_unavailable_stack():
    error = raised_by(lambda: httpx.get(f"http://127.0.0.1:{free_port()}/api/health"))
    assert explain(error).code == "stack_unavailable"
    request = httpx.Request("POST", "http://prefect/api/flow_runs")
    for status, code in [(503, "stack_unavailable"), (422, "internal_error")]:
        answer = httpx.Response(status, request=request, json={"detail": "no"})
        refused = PrefectHTTPStatusError.from_httpx_error(raised_by(answer.raise_for_status))
        assert explain(refused).code == code


def test_anything_else_is_an_internal_error_of_its_type():
    assert explain(KeyError("labels")) == Cause("internal_error", "KeyError: 'labels'", False)


def test_causes_load_no_large_library():
    heavy = ["torch", "mlflow", "sqlalchemy", "httpx", "requests", "psycopg2", "prefect"]
    program = f"import sys, tasks.causes; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
