"""The models that can be asked: base models below the model root, and adapters in MLflow's registry."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from jobs.base_models.catalog import list_names
from jobs.mlflow_server import MlflowServer, explain_refusal
from jobs.network.deadlines import call_deadline
from jobs.network.failures import describe_failure
from jobs.preflight.context import CheckContext
from jobs.preflight.models import find_model_folder
from jobs.settings import Settings
from sft.errors import ModelNotFound, StackError

PAGE_ROWS = 1000
BASE_TAG = "base_model"
ADAPTER = re.compile(r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)@v?(?P<version>[0-9]{1,9}|latest)")
ADAPTER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
TUNED = re.compile(r"ft:(?P<base>[^\0]+):[^:]*:(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*):v?(?P<version>[0-9]{1,9}|latest)")


@dataclass(frozen=True)
class ServedModel:
    """A base model, a version of an adapter, or a checkpoint of a job.

    Attributes:
        id: `NAME@VERSION` of an adapter, the name of the base model, or `ft:...:ckpt-step-N` of a checkpoint.
        base: name of the base model; None for an adapter whose registry entry does not say.
        adapter: `models:/NAME/VERSION`, or a name of the checkpoint; None for a base model.
        created: seconds since 1970.
        checkpoint: where its adapter is (`tasks.fetched_adapters`).
    """

    id: str
    base: str | None
    adapter: str | None
    created: int
    checkpoint: dict[str, Any] | None = None


class ServedModels:
    """Find and list the models. Raises StackError if MLflow can't be reached."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._server = MlflowServer.find(settings)

    def list_all(self) -> list[ServedModel]:
        """List all of them: base models by name, then adapters, newest first."""
        return [*self._list_bases(), *self._list_adapters("", None)]

    def _list_bases(self) -> list[ServedModel]:
        root = self._settings.model_root
        return [_describe_base(name, root / name) for name in list_names(self._settings)]

    def find(self, model_id: str) -> ServedModel:
        """Find a base model, `NAME@VERSION`, `NAME@latest`, `NAME` for its latest, or `ft:BASE:ANY:NAME:VERSION`.

        Raises:
            ModelNotFound: there is none of this name.
        """
        if match := TUNED.fullmatch(model_id):
            found = self._find_adapter(match["name"], match["version"])
            if found and found.base == match["base"]:
                return found
        elif match := ADAPTER.fullmatch(model_id):
            if found := self._find_adapter(match["name"], match["version"]):
                return found
        elif base := self._find_base(model_id):
            return base
        elif ADAPTER_NAME.fullmatch(model_id) and (found := self._find_adapter(model_id, "latest")):
            return found
        raise ModelNotFound(
            f"The model {model_id!r} does not exist: it is neither a base model below the model root nor NAME@VERSION "
            "of an adapter; GET /v1/models lists them"
        )

    def _find_base(self, name: str) -> ServedModel | None:
        try:
            folder = find_model_folder(name, CheckContext(self._settings, workers_are_here=False))
            return _describe_base(name, folder) if folder else None
        except OSError:  # not a name that a file can have
            return None

    def _find_adapter(self, name: str, version: str) -> ServedModel | None:
        version = version if version == "latest" else str(int(version))
        found = self._list_adapters(f"name = '{name}'", 1 if version == "latest" else None)
        return next((one for one in found if version == "latest" or one.id == f"{name}@{version}"), None)

    def _list_adapters(self, condition: str, most: int | None) -> Iterator[ServedModel]:
        if not self._server.has_api:
            return
        query: dict[str, Any] = {"max_results": most or PAGE_ROWS, "order_by": "version_number DESC"}
        query |= {"filter": condition} if condition else {"order_by": "creation_timestamp DESC"}
        with self._server.open() as client:
            while True:
                page = self._read(client, query)
                yield from map(_describe_version, page.get("model_versions", []))
                if most or not page.get("next_page_token"):
                    return
                query["page_token"] = page["next_page_token"]

    def _read(self, client: httpx.Client, query: dict[str, Any]) -> dict[str, Any]:
        try:
            with self._server.watch(), call_deadline():
                response = client.get("mlflow/model-versions/search", params=query).raise_for_status()
                page: dict[str, Any] = response.json()
        except httpx.HTTPStatusError as error:
            status = error.response.status_code
            reason = explain_refusal(status) or f"responds with {status}"
            raise StackError(f"MLflow at {self._server.url} {reason}") from error
        except (httpx.HTTPError, ValueError) as error:
            raise StackError(f"MLflow at {self._server.url} can't be reached ({describe_failure(error)})") from error
        return page


def _describe_base(name: str, folder: Path) -> ServedModel:
    return ServedModel(name, name, None, int((folder / "config.json").stat().st_mtime))


def _describe_version(found: dict[str, Any]) -> ServedModel:
    tags = {tag["key"]: tag.get("value") for tag in found.get("tags", [])}
    name, version = found["name"], found["version"]
    created = int(found.get("creation_timestamp") or 0) // 1000
    return ServedModel(f"{name}@{version}", tags.get(BASE_TAG) or None, f"models:/{name}/{version}", created)
