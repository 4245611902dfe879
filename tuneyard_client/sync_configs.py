# Generated from async_configs.py by client/generate_sync.py; do not edit.
"""`client.configs` for the blocking client: saved configurations."""

import builtins

from tuneyard_client import config_calls
from tuneyard_client.calls import Run
from tuneyard_client.models import Config
from tuneyard_wire.configs import ConfigVersion, SavedConfig


class Configs:
    """Saved configurations."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def save(self, name: str, config: Config) -> SavedConfig:
        """Save a configuration, complete or partial."""
        return self._run(config_calls.save(name, config))

    def list(self, name: str | None = None, id_prefix: str | None = None) -> builtins.list[SavedConfig]:
        """List configurations, oldest first: all, or those with this name or id prefix."""
        return self._run(config_calls.list_all(name, id_prefix))

    def get(self, config_id: str) -> SavedConfig:
        """Get the current version of a configuration."""
        return self._run(config_calls.get_one(config_id))

    def update(self, config_id: str, name: str, config: Config) -> SavedConfig:
        """Save a new version of a configuration."""
        return self._run(config_calls.update(config_id, name, config))

    def delete(self, config_id: str) -> None:
        """Delete a configuration. Jobs created from it are kept."""
        self._run(config_calls.delete(config_id))

    def versions(self, config_id: str) -> builtins.list[ConfigVersion]:
        """List all versions of a configuration, oldest first."""
        return self._run(config_calls.versions(config_id))
