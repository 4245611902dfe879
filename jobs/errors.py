"""Errors of the service and its servers: a part of the tree whose root is in `sft.errors`."""

from sft.errors import InvalidConfig, StackError, TuneyardError


class InvalidSavedConfig(InvalidConfig):
    """A saved configuration, or the result of a request's changes to it, is not valid."""

    code = "invalid_saved_config"


class InvalidCursor(InvalidConfig):
    """A pagination cursor that this service did not return."""

    code = "invalid_cursor"


class JobNotFound(TuneyardError, ValueError):
    """No job has this id. A ValueError because the documented Python interface says so."""

    status = 404
    code = "job_not_found"


class ConfigNotFound(TuneyardError, ValueError):
    """No saved configuration has this id. A ValueError because the documented Python interface says so."""

    status = 404
    code = "config_not_found"


class KeyNotFound(TuneyardError, LookupError):
    """No API key has this id."""

    status = 404
    code = "api_key_not_found"


class NameTaken(TuneyardError, ValueError):
    """The name of a dataset that is added is that of another key's, or of one in the configured registry."""

    status = 409
    code = "name_taken"


class DatasetInUse(TuneyardError, RuntimeError):
    """An added dataset can't be deleted: a job that has not ended needs it."""

    status = 409
    code = "dataset_in_use"


class UploadTooLarge(TuneyardError, ValueError):
    """A file or a base model that is larger than a setting allows, or than was announced."""

    status = 413
    code = "upload_too_large"


class UploadNotFound(TuneyardError, LookupError):
    """No upload in parts has this id, or file: it was completed, aborted or has expired."""

    status = 404
    code = "upload_not_found"


class InvalidUpload(TuneyardError, ValueError):
    """A part of an upload, or the whole, is not what it was announced to be."""

    status = 422
    code = "invalid_upload"


class DeliveryNotFound(TuneyardError, LookupError):
    """The job has no delivery with this id."""

    status = 404
    code = "delivery_not_found"


class JobConflict(TuneyardError, RuntimeError):
    """The request does not fit the job's present state."""

    status = 400
    code = "job_conflict"


class TrainingBusy(TuneyardError, RuntimeError):
    """`strategy=reject` and a job is running or queued."""

    status = 409
    code = "training_busy"


class IdempotencyKeyReused(TuneyardError, ValueError):
    """An Idempotency-Key was sent before with a different body."""

    status = 422
    code = "idempotency_key_reused"


class AdapterNotReady(TuneyardError, RuntimeError):
    """The adapter was requested before its job completed, or while its files were being replaced."""

    status = 409
    code = "adapter_not_ready"


class AdapterNotFound(TuneyardError, LookupError):
    """The job has completed, but its adapter's files are neither here nor in the registry."""

    status = 404
    code = "adapter_not_found"


class UploadConflict(TuneyardError, RuntimeError):
    """A piece or the end of an upload does not fit what has arrived, or its content is not the announced one."""

    status = 409
    code = "upload_conflict"


class ModelExists(TuneyardError, FileExistsError):
    """Another base model has this name."""

    status = 409
    code = "model_exists"


class ModelInUse(TuneyardError, RuntimeError):
    """A base model that a job which has not ended needs."""

    status = 409
    code = "model_in_use"


class ModelProtected(TuneyardError, PermissionError):
    """A base model that this API key may use, and not remove."""

    status = 403
    code = "model_protected"


class PlanningFailed(TuneyardError, RuntimeError):
    """Planning failed for a reason other than the request."""

    status = 503
    code = "planning_failed"


class AddingFailed(TuneyardError, RuntimeError):
    """A file could not be checked and added, for a reason other than the file."""

    status = 503
    code = "adding_failed"


class GenerationBusy(TuneyardError, RuntimeError):
    """There is no room to answer now: jobs use the GPU or the memory, or other requests come first."""

    status = 503
    code = "generation_busy"


class GenerationFailed(TuneyardError, RuntimeError):
    """An answer could not be generated for a reason other than the request."""

    status = 503
    code = "generation_failed"


class ContextTooLong(TuneyardError, ValueError):
    """A prompt and its answer would have more tokens than the model has positions."""

    status = 400
    code = "context_length_exceeded"


class SchemaMismatch(StackError):
    """The schema of Tuneyard's database does not suit this version, or its migration failed."""

    code = "schema_mismatch"
    is_worth_retrying = False


class RegistryUnavailable(TuneyardError, ConnectionError):
    """MLflow, which keeps metrics and adapters, could not be reached within the time a job waits for it."""

    status = 503
    code = "registry_unavailable"
    is_worth_retrying = True


class RegistryRefused(TuneyardError, RuntimeError):
    """MLflow refuses a call that a job can't do without, even after deleted items were restored where possible."""

    status = 502
    code = "registry_refused"


class StoreRefused(TuneyardError, RuntimeError):
    """The store in TUNEYARD_STORE can't be used as it is: a package, the bucket, credentials or a right is missing."""

    status = 502
    code = "store_refused"
