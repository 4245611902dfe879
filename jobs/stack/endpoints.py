"""`endpoints.json` in the state folder: the addresses of a stack's servers, for every process on the machine."""

import functools
import os
from dataclasses import dataclass
from pathlib import Path

from pydantic import SecretStr, TypeAdapter

from jobs.engine.credentials import find_password
from jobs.settings import NO_MLFLOW_CREDENTIALS, Settings
from sft.errors import StackError

VARIABLES = {
    "database_url": "TUNEYARD_DATABASE_URL",
    "prefect_api_url": "PREFECT_API_URL",
    "mlflow_tracking_uri": "MLFLOW_TRACKING_URI",
}


@dataclass(frozen=True)
class Endpoints:
    """The addresses of one stack. `ready` is set last, once every part is healthy."""

    ready: bool
    addresses: dict[str, str]  # by setting
    local: tuple[str, ...]  # the settings whose servers this stack runs itself
    gpus: tuple[str, ...]  # one worker each

    @classmethod
    def read(cls, home: Path) -> "Endpoints | None":
        """Read the endpoints of this state folder's stack; None if none was started."""
        try:
            text = (home / "endpoints.json").read_bytes()
        except FileNotFoundError:
            return None
        return _adapter().validate_json(text)

    def write(self, home: Path) -> None:
        """Write atomically, and private, as a database address may contain a password."""
        path = home / f"endpoints.json.{os.getpid()}"
        path.touch(mode=0o600)
        with path.open("wb") as file:
            file.write(_adapter().dump_json(self, indent=2))
            file.flush()
            os.fsync(file.fileno())
        path.rename(home / "endpoints.json")

    def fill(self, settings: Settings) -> Settings:
        """A copy of `settings` with this stack's addresses and Prefect's password where none are configured.

        Raises:
            StackError: an address that was configured when the stack started is missing now.
        """
        missing = [name for name in VARIABLES if getattr(settings, name) is None]
        for name in missing:
            if name not in self.local:
                raise StackError(
                    f"the stack in {settings.home} was started with {VARIABLES[name]} set and has no such server "
                    f"itself; set {VARIABLES[name]} here too, or run `tuneyard down` first"
                )
        credentials = NO_MLFLOW_CREDENTIALS if "mlflow_tracking_uri" in missing else {}
        filled = settings.model_copy(update={name: self.addresses[name] for name in missing} | credentials)
        password = find_password(filled) if "prefect_api_url" in missing else None
        return filled.model_copy(update={"prefect_auth_string": SecretStr(password)}) if password else filled


@functools.cache
def _adapter() -> TypeAdapter[Endpoints]:
    return TypeAdapter(Endpoints)
