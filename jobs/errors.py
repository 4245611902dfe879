"""Errors of the service and of what it stands on: more of the tree that begins in `sft.errors`."""

from sft.errors import InvalidConfig, StackError, TuneyardError


class InvalidSavedConfig(InvalidConfig):
    """A saved configuration, or what a request's changes make of it, that can't work."""

    code = "invalid_saved_config"


class InvalidCursor(InvalidConfig):
    """A place in a list of jobs that this service never named."""

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


class DeliveryNotFound(TuneyardError, LookupError):
    """The job has no delivery with this id."""

    status = 404
    code = "delivery_not_found"


class JobConflict(TuneyardError, RuntimeError):
    """What was asked for does not fit the job's present state."""

    status = 400
    code = "job_conflict"


class TrainingBusy(TuneyardError, RuntimeError):
    """`strategy=reject` and a job is running or queued."""

    status = 409
    code = "training_busy"


class IdempotencyKeyReused(TuneyardError, ValueError):
    """An Idempotency-Key that was sent before with another body."""

    status = 422
    code = "idempotency_key_reused"


class AdapterNotReady(TuneyardError, RuntimeError):
    """The adapter was asked for before its job had completed, or while its files were being replaced."""

    status = 409
    code = "adapter_not_ready"


class AdapterNotFound(TuneyardError, LookupError):
    """The job has completed, but its adapter's files are neither here nor in the registry."""

    status = 404
    code = "adapter_not_found"


class PlanningFailed(TuneyardError, RuntimeError):
    """A plan could not be made where it was asked for, for no fault of the request's."""

    status = 503
    code = "planning_failed"


class SchemaMismatch(StackError):
    """Tuneyard's own database has a schema that this version can't use, or could not bring up to date."""

    code = "schema_mismatch"
    is_worth_retrying = False


class RegistryUnavailable(TuneyardError, ConnectionError):
    """MLflow, which keeps metrics and adapters, could not be reached for as long as a job waits for it."""

    status = 503
    code = "registry_unavailable"
    is_worth_retrying = True


class RegistryRefused(TuneyardError, RuntimeError):
    """MLflow refuses what a job must have, though what was deleted there is restored where that is possible."""

    status = 502
    code = "registry_refused"
