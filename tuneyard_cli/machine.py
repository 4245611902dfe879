"""What commands ask of this machine: little where the client is alone, more where the full package is installed.

The full package puts its own `Machine` in place (`cli.machine`) before the first command runs.
"""

from typing import TYPE_CHECKING, Any, get_type_hints

from tuneyard_cli.problems import NeedsFullPackage

if TYPE_CHECKING:
    from tuneyard_cli.submission import Submission

INSTALL = "install the full package `tuneyard`"
SERVICE_COMMANDS = ("up", "down", "status", "serve", "doctor", "keys")  # of the full package


class Machine:
    """A machine with the client alone."""

    distribution = "tuneyard-client"
    start_hint = f"Name the service with --url or TUNEYARD_URL; to run one on this machine, {INSTALL}"

    def url(self) -> str:
        """Where the service of this machine listens."""
        from tuneyard_client.operations import DEFAULT_URL

        return DEFAULT_URL

    def default_dataset(self, revision: str) -> str:
        """The dataset that a bare revision refers to."""
        raise NeedsFullPackage(
            f"--dataset {revision} is a revision alone, whose dataset is not known here; give NAME@{revision}"
        )

    def fields(self) -> dict[str, Any]:
        """The fields of both APIs that are known here, with their types."""
        from tuneyard_wire.fields import AroundConfig, TrainingFields

        return {**get_type_hints(AroundConfig), **get_type_hints(TrainingFields)}

    def check_name(self, name: str) -> None:
        """Raises UsageProblem for a field that neither API has; here that is left to the service."""

    def plan(self, submission: "Submission") -> dict[str, Any]:
        """Plan a job without a service."""
        raise NeedsFullPackage(f"--here plans on this machine: {INSTALL}, or leave out --here to ask a service")

    def errors(self) -> tuple[type[Exception], ...]:
        """Further errors that are shown as one sentence."""
        return ()

    def explain(self, _error: Exception) -> Exception | None:
        """What is shown instead of an error."""
        return None


_current = Machine()


def this_machine() -> Machine:
    """The one that commands run on."""
    return _current


def use_machine(machine: Machine) -> None:
    """Let commands run on this one."""
    global _current
    _current = machine
