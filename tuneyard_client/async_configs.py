"""`client.configs` for asyncio: saved configurations."""

import builtins

from tuneyard_client import config_calls
from tuneyard_client.calls import AsyncRun
from tuneyard_client.models import Config
from tuneyard_wire.configs import ConfigVersion, SavedConfig


class AsyncConfigs:
    """Saved configurations."""

    def __init__(self, run: AsyncRun) -> None:
        self._run = run

    async def save(self, name: str, config: Config) -> SavedConfig:
        """Save a configuration, complete or partial."""
        return await self._run(config_calls.save(name, config))

    async def list(self, name: str | None = None, id_prefix: str | None = None) -> builtins.list[SavedConfig]:
        """List configurations, oldest first: all, or those with this name or id prefix."""
        return await self._run(config_calls.list_all(name, id_prefix))

    async def get(self, config_id: str) -> SavedConfig:
        """Get the current version of a configuration."""
        return await self._run(config_calls.get_one(config_id))

    async def update(self, config_id: str, name: str, config: Config) -> SavedConfig:
        """Save a new version of a configuration."""
        return await self._run(config_calls.update(config_id, name, config))

    async def delete(self, config_id: str) -> None:
        """Delete a configuration. Jobs created from it are kept."""
        await self._run(config_calls.delete(config_id))

    async def versions(self, config_id: str) -> builtins.list[ConfigVersion]:
        """List all versions of a configuration, oldest first."""
        return await self._run(config_calls.versions(config_id))
