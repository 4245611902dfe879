"""What commands need from the full package: settings, field types and the planner."""

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from cli.settings import explain_settings
from sft.errors import TuneyardError
from tuneyard_cli.machine import Machine
from tuneyard_cli.problems import UsageProblem

if TYPE_CHECKING:
    from tuneyard_cli.submission import UnsentJob
    from tuneyard_wire.model_folder import How


class ServiceMachine(Machine):
    """A machine on which the full package is installed."""

    distribution = "tuneyard"
    start_hint = "Start it with `tuneyard serve`, or name one with --url"

    def url(self) -> str:
        """URL at which `tuneyard serve` listens with the current settings."""
        from jobs.network.proxies import bracket
        from jobs.settings import Settings

        settings = Settings()
        is_wildcard = settings.host in ("0.0.0.0", "::", "")  # noqa: S104 - compared, not bound
        return f"http://{'127.0.0.1' if is_wildcard else bracket(settings.host)}:{settings.api_port}"

    def default_dataset(self, _revision: str) -> str:
        """The default dataset of the settings."""
        from jobs.settings import Settings

        return Settings().default_dataset

    def fields(self) -> dict[str, Any]:
        """All fields of both APIs with their types."""
        return _all_fields()

    def check_name(self, name: str) -> None:
        """Check that a field exists in either API. Raises UsageProblem."""
        if name in self.fields():
            return
        from sft.explanations import find_nearest

        nearest = find_nearest(name, self.fields())
        hint = f"; did you mean {nearest}?" if nearest else ""
        raise UsageProblem(f"{name or repr(name)} is not a known field{hint}")

    def plan(self, submission: "UnsentJob", device: str | None = None) -> dict[str, Any]:
        """Plan a job on this machine. Past jobs are used if a database is configured or the stack is up.

        Raises InvalidConfig, or what `plan_once` raises.
        """
        from pydantic import ValidationError

        from api.training_request import TrainingRequest
        from jobs.service.planner import plan_once
        from jobs.settings import Settings
        from jobs.stack.endpoints import Endpoints
        from jobs.stack.local import is_up
        from sft.config import SFTConfig
        from sft.errors import InvalidConfig
        from sft.explanations import explain_validation_error

        settings = Settings()
        endpoints = Endpoints.read(settings.home)
        if endpoints is not None and is_up(settings):
            settings = endpoints.fill(settings)
        if submission.interface == "sft":
            return plan_once(SFTConfig.from_dict(dict(submission.fields)), settings, device)
        try:
            request = TrainingRequest.model_validate(dict(submission.fields))
        except ValidationError as error:
            raise InvalidConfig(explain_validation_error(error, TrainingRequest)) from error
        return plan_once(request.to_spec(settings.default_dataset).config, settings, device)

    def model_root_id(self) -> str | None:
        """Identifies the model root of this installation."""
        from jobs.base_models.catalog import identify_root
        from jobs.settings import Settings

        return identify_root(Settings())

    def add_model(self, folder: Path, names: list[str], how: "How") -> tuple[dict[str, Any], bool, tuple[str, ...]]:
        """Add a base model to the model root. Raises as `jobs.base_models.publishing.add_folder` does."""
        from jobs.base_models.publishing import add_folder, find_name_of
        from jobs.errors import ModelExists
        from jobs.settings import Settings

        settings = Settings()
        inside = find_name_of(folder, settings) if len(names) > 1 else None
        if inside is not None:  # none was asked for, and it has one
            return add_folder(folder, inside, settings, how)
        for name in names[:-1]:
            try:
                return add_folder(folder, name, settings, how)
            except ModelExists:
                continue
        return add_folder(folder, names[-1], settings, how)

    def errors(self) -> tuple[type[Exception], ...]:
        """All errors of Tuneyard."""
        return (TuneyardError,)

    def explain(self, error: Exception) -> Exception | None:
        """Name the environment variables of invalid settings."""
        return explain_settings(error)


@cache
def _all_fields() -> dict[str, Any]:
    from sft.config import SFTConfig
    from tuneyard_wire.fields import SftOptions, TrainingFields

    engine = {name: info.annotation for name, info in SFTConfig.model_fields.items()}
    return {**get_type_hints(SftOptions), **engine, **get_type_hints(TrainingFields)}
