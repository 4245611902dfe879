"""What commands need from the local installation, the client alone or the full package.

The full package installs its own `Machine` (`cli.machine`) before the first command runs.
"""

from typing import TYPE_CHECKING, Any, get_type_hints

from tuneyard_cli.problems import NeedsFullPackage

if TYPE_CHECKING:
    from pathlib import Path

    from tuneyard_cli.submission import UnsentJob
    from tuneyard_wire.model_folder import How

INSTALL = "install the full package `tuneyard`"
# Only in the full package.
SERVICE_COMMANDS = ("up", "down", "status", "serve", "doctor", "deploy", "trainer-role", "keys", "export")


class Machine:
    """A machine on which only the client is installed."""

    distribution = "tuneyard-client"
    start_hint = f"Name the service with --url or TUNEYARD_URL; to run one on this machine, {INSTALL}"

    def url(self) -> str:
        """URL of this machine's service."""
        from tuneyard_client.operations import DEFAULT_URL

        return DEFAULT_URL

    def default_dataset(self, revision: str) -> str:
        """The dataset of a revision without a name. Raises NeedsFullPackage: the client does not know the settings."""
        raise NeedsFullPackage(f"--dataset {revision} is a revision without a dataset; give NAME@{revision}")

    def fields(self) -> dict[str, Any]:
        """The fields of both APIs with their types, as far as they are known here."""
        from tuneyard_wire.fields import SftOptions, TrainingFields

        return {**get_type_hints(SftOptions), **get_type_hints(TrainingFields)}

    def check_name(self, name: str) -> None:
        """Check that a field exists. Raises UsageProblem; the client leaves this to the service."""

    def plan(self, submission: "UnsentJob", device: str | None = None) -> dict[str, Any]:
        """Plan a job on this machine. Raises NeedsFullPackage."""
        raise NeedsFullPackage(f"--here plans on this machine: {INSTALL}, or leave out --here to ask a service")

    def model_root_id(self) -> str | None:
        """Identifies the model root of this installation, as `GET /models` does that of the service."""
        return None

    def add_model(self, folder: "Path", names: list[str], how: "How") -> tuple[dict[str, Any], bool, tuple[str, ...]]:
        """Add a base model to this installation's model root, under the first of these names that is free.

        Of several names a folder in the model root needs none, as it has one there.

        Returns the model, whether it is new, and the entries of the folder that were left out.

        Raises NeedsFullPackage.
        """
        raise NeedsFullPackage(f"--here adds the model on this machine: {INSTALL}, or leave out --here to upload it")

    def errors(self) -> tuple[type[Exception], ...]:
        """Further errors that are shown as a message, without a traceback."""
        return ()

    def explain(self, _error: Exception) -> Exception | None:
        """The error to show instead of another one, or None."""
        return None


_current = Machine()


def this_machine() -> Machine:
    """The machine that commands use."""
    return _current


def use_machine(machine: Machine) -> None:
    """Set the machine that commands use."""
    global _current
    _current = machine
