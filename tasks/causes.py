"""Maps what a job raised to a stable code, a sentence, and whether another attempt is worthwhile.

Errors of libraries are recognized by name: comparing classes would import torch, MLflow and others in processes that do
not need them.
"""

from collections.abc import Callable
from typing import NamedTuple

from jobs.errors import RegistryUnavailable
from sft.errors import (
    DeviceUnavailable,
    DiskFull,
    InvalidConfig,
    StackError,
    TuneyardError,
    is_device_failure,
    is_out_of_memory,
    walk_causes,
)
from sft.files.disk import is_about_space, is_about_temporary

DETAIL_CHARACTERS = 500
SERVER_ERROR = 500  # HTTP statuses from here on are failures of the server, not of the request

_MLFLOW_AWAY_NAMES = {
    f"requests.exceptions.{name}" for name in ("ConnectionError", "Timeout", "RetryError", "ChunkedEncodingError")
}
_STORE_AWAY_NAMES = {f"botocore.exceptions.{name}" for name in ("ConnectionError", "HTTPClientError")}
_STORE_MODULES = ("boto3.", "botocore.", "s3transfer.")
_PARAMETER_NAMES = {
    f"prefect.exceptions.{name}" for name in ("ParameterBindError", "ParameterTypeError", "SignatureMismatchError")
}
_DATABASE_NAMES = {
    f"{module}.{name}" for module in ("sqlalchemy.exc", "psycopg2") for name in ("OperationalError", "InterfaceError")
}
# Responses of a PostgreSQL server that stops, starts or has no free connection.
_DATABASE_ANSWERS = "psycopg2.errors"
_CONNECTION_LOST = {
    *("AdminShutdown", "CrashShutdown", "CannotConnectNow", "TooManyConnections"),
    *("ConnectionException", "ConnectionDoesNotExist", "ConnectionFailure", "ProtocolViolation"),
}
_DATABASE_DISK_FULL = f"{_DATABASE_ANSWERS}.DiskFull"


class Cause(NamedTuple):
    """Why a job failed. `code` is stable and machine-readable, `message` a sentence with the remedy."""

    code: str
    message: str
    is_worth_retrying: bool


def explain(error: BaseException) -> Cause:
    """Find the cause of a job's failure.

    A full disk anywhere in the chain of causes decides; otherwise the outermost known error.
    """
    chain = [*walk_causes(error)]
    for one in chain:
        if _is_full_disk(one):
            told = next((str(outer) for outer in chain if isinstance(outer, DiskFull)), None)
            return Cause(DiskFull.code, told or _say_disk_full(one), DiskFull.is_worth_retrying)
    for one in chain:
        if isinstance(one, TuneyardError) and one.code != TuneyardError.code:
            return Cause(one.code, str(one), one.is_worth_retrying)
        for is_it, code, say, is_worth_retrying in _KINDS:
            if is_it(one):
                return Cause(code, say(one), is_worth_retrying)
    message = str(error) if isinstance(error, TuneyardError) else f"{type(error).__name__}: {error}"
    return Cause(TuneyardError.code, message, TuneyardError.is_worth_retrying)


def is_mlflow_away(error: BaseException) -> bool:
    """Whether MLflow or its artifact store could not be reached or failed, as opposed to refusing the request."""
    return any(map(_is_mlflow_away, walk_causes(error)))


def name_kinds(error: BaseException) -> set[str]:
    """Full names of the error's class and its base classes."""
    return {f"{kind.__module__}.{kind.__name__}" for kind in type(error).__mro__}


def _is_full_disk(error: BaseException) -> bool:
    return is_about_space(error) or _DATABASE_DISK_FULL in name_kinds(error)


def _is_mlflow_away(error: BaseException) -> bool:
    names = name_kinds(error)
    if names & (_MLFLOW_AWAY_NAMES | _STORE_AWAY_NAMES):
        return True
    if "botocore.exceptions.ClientError" in names:
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)  # type: ignore[attr-defined]
        return bool(status >= SERVER_ERROR)
    if "requests.exceptions.HTTPError" in names:
        return getattr(getattr(error, "response", None), "status_code", 0) >= SERVER_ERROR
    if "mlflow.exceptions.MlflowException" not in names:
        return False
    # MLflow's client raises its own errors with status 500 too, so check that this one came from a response.
    came_from_server = "mlflow.exceptions.RestException" in names or str(error).startswith("API request to")
    return came_from_server and error.get_http_status_code() >= SERVER_ERROR  # type: ignore[attr-defined]


def is_store_refusal(error: BaseException) -> bool:
    """Whether MLflow's artifact store can't be used as it is: a package, credentials or a right is missing."""
    is_of_store = any(name.startswith(_STORE_MODULES) for name in name_kinds(error))
    return (is_of_store or isinstance(error, (ImportError, PermissionError))) and not is_mlflow_away(error)


def _is_database_away(error: BaseException) -> bool:
    if not name_kinds(error) & _DATABASE_NAMES:
        return False
    answer = type(getattr(error, "orig", error))
    return answer.__module__ != _DATABASE_ANSWERS or answer.__name__ in _CONNECTION_LOST


def _is_prefect_away(error: BaseException) -> bool:
    names = name_kinds(error)
    if "prefect.exceptions.PrefectHTTPStatusError" in names:
        return bool(error.response.status_code >= SERVER_ERROR)  # type: ignore[attr-defined]
    return "httpx.TransportError" in names


def is_about_parameters(error: BaseException) -> bool:
    """Whether Prefect could not call a flow with the parameters of its run."""
    return bool(name_kinds(error) & _PARAMETER_NAMES)


def _show(error: BaseException) -> str:
    """Describe an error in one line."""
    first_line = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {first_line}".removesuffix(": ")[:DETAIL_CHARACTERS]


def _say_disk_full(error: BaseException) -> str:
    if is_about_temporary(error):
        return f"there is no temporary folder ({_show(error)}); free some space, or set TMPDIR to one that has some"
    return f"no space left on a disk ({_show(error)}); free some, or set output_dir to a folder on another disk"


def _say_out_of_memory(error: BaseException) -> str:
    return (
        f"out of memory ({_show(error)}); lower batch_size or cutoff_len (max_seq_length), or set "
        "gradient_checkpointing to true; a plan shows what a job needs"
    )


def _say_device_failure(error: BaseException) -> str:
    if "torch.distributed.DistError" in name_kinds(error) or "gloo/" in str(error):
        last = str(error).strip().rpartition("\n")[2][:DETAIL_CHARACTERS]
        more = "" if last in _show(error) else f"; {last}"
        return (
            f"the processes of num_devices have lost each other ({_show(error)}{more}); NCCL_DEBUG=INFO in the "
            "worker's environment logs more"
        )
    return (
        f"a GPU can't be used ({_show(error)}); see `nvidia-smi` on the worker's machine: another program may hold "
        "it, or it has to be reset"
    )


def _say_mlflow_away(error: BaseException) -> str:
    return f"MLflow can't be reached ({_show(error)}); see `tuneyard status`"


def _say_stack_away(error: BaseException) -> str:
    return f"Prefect or the database can't be reached ({_show(error)}); see `tuneyard status`"


def _say_refused(error: BaseException) -> str:
    return f"the run's parameters do not suit its flow ({_show(error)}); edit its schedule, or start a new run"


_Kind = tuple[Callable[[BaseException], bool], str, Callable[[BaseException], str], bool]
_KINDS: tuple[_Kind, ...] = (
    (is_out_of_memory, "out_of_memory", _say_out_of_memory, False),
    (is_device_failure, DeviceUnavailable.code, _say_device_failure, DeviceUnavailable.is_worth_retrying),
    (_is_mlflow_away, RegistryUnavailable.code, _say_mlflow_away, RegistryUnavailable.is_worth_retrying),
    (_is_database_away, StackError.code, _say_stack_away, StackError.is_worth_retrying),
    (is_about_parameters, InvalidConfig.code, _say_refused, InvalidConfig.is_worth_retrying),
    (_is_prefect_away, StackError.code, _say_stack_away, StackError.is_worth_retrying),
)
