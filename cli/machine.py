"""What commands ask of a machine that has the full package: its settings, its configurations, its planner."""

from functools import cache
from typing import TYPE_CHECKING, Any, get_type_hints

from cli.settings import explain_settings
from sft.errors import TuneyardError
from tuneyard_cli.machine import Machine
from tuneyard_cli.problems import UsageProblem

if TYPE_CHECKING:
    from tuneyard_cli.submission import Submission


class ServiceMachine(Machine):
    """A machine that can run the service."""

    distribution = "tuneyard"
    start_hint = "Start it with `tuneyard serve`, or name one with --url"

    def url(self) -> str:
        """Where `tuneyard serve` listens with the settings of this environment."""
        from jobs.network.proxies import bracket
        from jobs.settings import Settings

        settings = Settings()
        is_everywhere = settings.host in ("0.0.0.0", "::", "")  # noqa: S104 - compared, not bound
        return f"http://{'127.0.0.1' if is_everywhere else bracket(settings.host)}:{settings.api_port}"

    def default_dataset(self, _revision: str) -> str:
        """That of the settings."""
        from jobs.settings import Settings

        return Settings().default_dataset

    def fields(self) -> dict[str, Any]:
        """Every field of both APIs, with its type."""
        return _all_fields()

    def check_name(self, name: str) -> None:
        """Raises UsageProblem for a field that neither API has."""
        if name in self.fields():
            return
        from sft.explanations import find_nearest

        nearest = find_nearest(name, self.fields())
        raise UsageProblem(f"{name} is not a known field{f'; did you mean {nearest}?' if nearest else ''}")

    def plan(self, submission: "Submission") -> dict[str, Any]:
        """In a process of this machine; past jobs are looked up where a database is configured or the stack is up."""
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
        if submission.dialect == "sft":
            return plan_once(SFTConfig.from_dict(dict(submission.fields)), settings)
        try:
            request = TrainingRequest.model_validate(dict(submission.fields))
        except ValidationError as error:
            raise InvalidConfig(explain_validation_error(error, TrainingRequest)) from error
        return plan_once(request.to_spec(settings.default_dataset).config, settings)

    def errors(self) -> tuple[type[Exception], ...]:
        """Those of jobs and of the stack."""
        return (TuneyardError,)

    def explain(self, error: Exception) -> Exception | None:
        """Settings that can't be read, by their environment variables."""
        return explain_settings(error)


@cache
def _all_fields() -> dict[str, Any]:
    from sft.config import SFTConfig
    from tuneyard_wire.fields import AroundConfig, TrainingFields

    engine = {name: info.annotation for name, info in SFTConfig.model_fields.items()}
    return {**get_type_hints(AroundConfig), **engine, **get_type_hints(TrainingFields)}
