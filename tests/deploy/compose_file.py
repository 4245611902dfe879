"""The compose file as Compose reads it: variables replaced by their defaults, secrets and volumes resolved."""

import re
from typing import Any

import yaml

from jobs.project import PROJECT_ROOT

FOLDER = PROJECT_ROOT / "deploy"


def interpolate(text: str) -> str:
    """Replace `${NAME:-default}` by the default, and `$$` by `$`."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text).replace("$$", "$")


def read_compose(name: str) -> dict[str, Any]:
    """One compose file, with its YAML anchors merged."""
    found: dict[str, Any] = yaml.safe_load(interpolate((FOLDER / name).read_text(encoding="utf-8")))
    return {key: value for key, value in found.items() if not key.startswith("x-")}


def secrets_of(service: dict[str, Any]) -> dict[str, str]:
    """The secret of each file in a service's /run/secrets."""
    entries = [entry if isinstance(entry, dict) else {"source": entry} for entry in service.get("secrets", [])]
    return {entry.get("target", entry["source"]): entry["source"] for entry in entries}
