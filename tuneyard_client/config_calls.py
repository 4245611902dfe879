"""Requests for saved configurations."""

from tuneyard_client.calls import Call, get, plain, segment
from tuneyard_client.models import Config
from tuneyard_client.reading import read_model, read_models
from tuneyard_wire.configs import ConfigVersion, SavedConfig

CONFIGS = "/api/sft/configs"


def save(name: str, config: Config) -> Call[SavedConfig]:
    """POST /api/sft/configs."""
    return Call("POST", CONFIGS, read_model(SavedConfig), body={"name": name, "config": plain(config)})


def list_all(name: str | None = None, id_prefix: str | None = None) -> Call[list[SavedConfig]]:
    """GET /api/sft/configs."""
    params = {key: value for key, value in (("name", name), ("id_prefix", id_prefix)) if value is not None}
    return get(CONFIGS, read_models(SavedConfig), params)


def get_one(config_id: str) -> Call[SavedConfig]:
    """GET /api/sft/configs/{id}."""
    return get(_config_path(config_id), read_model(SavedConfig))


def update(config_id: str, name: str, config: Config) -> Call[SavedConfig]:
    """PUT /api/sft/configs/{id}: a new version."""
    return Call("PUT", _config_path(config_id), read_model(SavedConfig), body={"name": name, "config": plain(config)})


def delete(config_id: str) -> Call[None]:
    """DELETE /api/sft/configs/{id}."""
    return Call("DELETE", _config_path(config_id), lambda _answer: None)


def versions(config_id: str) -> Call[list[ConfigVersion]]:
    """GET /api/sft/configs/{id}/versions."""
    return get(_config_path(config_id) + "/versions", read_models(ConfigVersion))


def _config_path(config_id: str) -> str:
    return f"{CONFIGS}/{segment(config_id)}"
