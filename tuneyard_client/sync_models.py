# Generated from async_models.py by client/generate_sync.py; do not edit.
"""`client.base_models` for the blocking client: the base models of a service."""

import builtins
from pathlib import Path

from tuneyard_client import model_calls
from tuneyard_client.calls import Follow, Run
from tuneyard_client.model_calls import Progress, ReadFolder
from tuneyard_client.waiting import run
from tuneyard_wire.base_models import Model


class BaseModels:
    """Base models of the service."""

    def __init__(self, run: Run, follow: Follow) -> None:
        self._run = run
        self._follow = follow

    def add(self, folder: str | Path, name: str, on_progress: Progress | None = None) -> Model:
        """Upload the base model in a folder of this machine; returns it once the service can use it.

        What is interrupted goes on with the next call. Files that training does not read are not sent.

        Args:
            name: `ORG/NAME`, or `NAME` for `local/NAME`.
            on_progress: gets the bytes that have arrived and those of the whole model.

        Raises:
            InvalidRequest: the folder has no base model that can be used.
            Conflict: another model has this name.
        """
        return self.send(run(model_calls.read_folder, Path(folder).expanduser()), name, on_progress)

    def send(self, read: ReadFolder, name: str, on_progress: Progress | None = None) -> Model:
        """`add`, for a folder that `read_folder` has read."""
        return self._follow(model_calls.upload(read, name, on_progress))

    def list(self) -> builtins.list[Model]:
        """List the base models in the service's model root."""
        return (self._run(model_calls.models())).models

    def root_id(self) -> str | None:
        """What identifies the service's model root and its machine."""
        return (self._run(model_calls.models())).root_id

    def get(self, name: str) -> Model:
        """Get a base model. Raises NotFound."""
        return self._run(model_calls.model(name))

    def delete(self, name: str) -> None:
        """Remove a base model. Raises Conflict while a job needs it."""
        self._run(model_calls.delete_model(name))
