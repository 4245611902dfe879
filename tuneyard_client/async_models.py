"""`client.base_models` for asyncio: the base models of a service."""

import builtins
from pathlib import Path

from tuneyard_client import model_calls
from tuneyard_client.calls import AsyncFollow, AsyncRun
from tuneyard_client.model_calls import Progress, ReadFolder
from tuneyard_client.waiting import async_run
from tuneyard_wire.base_models import Model


class AsyncBaseModels:
    """Base models of the service."""

    def __init__(self, run: AsyncRun, follow: AsyncFollow) -> None:
        self._run = run
        self._follow = follow

    async def add(self, folder: str | Path, name: str, on_progress: Progress | None = None) -> Model:
        """Upload the base model in a folder of this machine; returns it once the service can use it.

        What is interrupted goes on with the next call. Files that training does not read are not sent.

        Args:
            name: `ORG/NAME`, or `NAME` for `local/NAME`.
            on_progress: gets the bytes that have arrived and those of the whole model.

        Raises:
            InvalidRequest: the folder has no base model that can be used.
            Conflict: another model has this name.
        """
        return await self.send(await async_run(model_calls.read_folder, Path(folder).expanduser()), name, on_progress)

    async def send(self, read: ReadFolder, name: str, on_progress: Progress | None = None) -> Model:
        """`add`, for a folder that `read_folder` has read."""
        return await self._follow(model_calls.upload(read, name, on_progress))

    async def list(self) -> builtins.list[Model]:
        """List the base models in the service's model root."""
        return (await self._run(model_calls.models())).models

    async def root_id(self) -> str | None:
        """What identifies the service's model root and its machine."""
        return (await self._run(model_calls.models())).root_id

    async def get(self, name: str) -> Model:
        """Get a base model. Raises NotFound."""
        return await self._run(model_calls.model(name))

    async def delete(self, name: str) -> None:
        """Remove a base model. Raises Conflict while a job needs it."""
        await self._run(model_calls.delete_model(name))
