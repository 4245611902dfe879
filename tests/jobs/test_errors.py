"""Errors of the service: the codes and statuses that clients rely on."""

import pickle

import pytest

from jobs import errors
from sft.errors import TuneyardError, find_error

CODES = {
    "InvalidSavedConfig": ("invalid_saved_config", 400, ValueError),
    "InvalidCursor": ("invalid_cursor", 400, ValueError),
    "JobNotFound": ("job_not_found", 404, ValueError),
    "ConfigNotFound": ("config_not_found", 404, ValueError),
    "KeyNotFound": ("api_key_not_found", 404, LookupError),
    "DeliveryNotFound": ("delivery_not_found", 404, LookupError),
    "JobConflict": ("job_conflict", 400, RuntimeError),
    "TrainingBusy": ("training_busy", 409, RuntimeError),
    "IdempotencyKeyReused": ("idempotency_key_reused", 422, ValueError),
    "AdapterNotReady": ("adapter_not_ready", 409, RuntimeError),
    "AdapterNotFound": ("adapter_not_found", 404, LookupError),
    "PlanningFailed": ("planning_failed", 503, RuntimeError),
    "SchemaMismatch": ("schema_mismatch", 503, RuntimeError),
    "RegistryUnavailable": ("registry_unavailable", 503, ConnectionError),
    "RegistryRefused": ("registry_refused", 502, RuntimeError),
    "StoreRefused": ("store_refused", 502, RuntimeError),
    "NameTaken": ("name_taken", 409, ValueError),
    "DatasetInUse": ("dataset_in_use", 409, RuntimeError),
    "UploadTooLarge": ("upload_too_large", 413, ValueError),
    "UploadNotFound": ("upload_not_found", 404, LookupError),
    "InvalidUpload": ("invalid_upload", 422, ValueError),
    "UploadConflict": ("upload_conflict", 409, RuntimeError),
    "ModelExists": ("model_exists", 409, FileExistsError),
    "ModelInUse": ("model_in_use", 409, RuntimeError),
    "ModelProtected": ("model_protected", 403, PermissionError),
    "AddingFailed": ("adding_failed", 503, RuntimeError),
    "GenerationBusy": ("generation_busy", 503, RuntimeError),
    "GenerationFailed": ("generation_failed", 503, RuntimeError),
    "ContextTooLong": ("context_length_exceeded", 400, ValueError),
}


def test_every_error_is_listed_here():
    found = {name for name, kind in vars(errors).items() if getattr(kind, "__module__", None) == errors.__name__}
    assert found == {*CODES}


@pytest.mark.parametrize("name", CODES)
def test_a_client_sees_the_same_code_status_and_standard_type(name):
    kind = getattr(errors, name)
    code, status, standard = CODES[name]

    assert (kind.code, kind.status) == (code, status)
    assert issubclass(kind, TuneyardError)
    assert issubclass(kind, standard)
    assert find_error(code) is kind
    assert str(pickle.loads(pickle.dumps(kind("what and why")))) == "what and why"  # noqa: S301 - our own
