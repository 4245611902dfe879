"""Show a running job on a terminal: phases as lines, training as a progress bar."""

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape as escape_markup
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from tuneyard_client import Tuneyard
from tuneyard_wire.jobs import Progress as Training
from tuneyard_wire.jobs import TrainJob
from tuneyard_wire.one_line import escape
from tuneyard_wire.serving_check import ServingCheck

POLL_SECONDS = 0.5
PERCENT_PER_LINE = 10  # without a terminal, which has a bar


def watch_job(client: Tuneyard, job_id: str, console: Console) -> TrainJob:
    """Show a job until it has ended; returns it. Raises ClientError."""
    with JobDisplay(console) as display:
        return client.wait(job_id, on_progress=display.show, poll_seconds=POLL_SECONDS)


class JobDisplay:
    """Print what has changed in a job since it was last shown."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = Progress(
            TextColumn("{task.description:<16}"),
            BarColumn(),
            TextColumn("step {task.completed:.0f} of {task.total:.0f}"),
            TextColumn("loss {task.fields[loss]}  {task.fields[speed]} tokens/s  {task.fields[left]} left"),
            console=console,
            auto_refresh=console.is_terminal,  # a file has no bar, and Ctrl-C need not wait for a thread
        )
        self._bar: TaskID | None = None
        self._place: tuple[int | None, str | None] = (None, None)
        self._phase: str | None = None
        self._tracking_url: str | None = None
        self._shown_percent = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        if self._bars.live.is_started:  # else it would print an empty line
            self._bars.stop()

    def show(self, job: TrainJob) -> None:
        """Print what has changed."""
        place = (job.queue_position, job.waiting_for)
        if job.queue_position is not None and place != self._place:
            reason = f": {job.waiting_for}" if job.waiting_for else ""
            self._print_line(f"queued at position {job.queue_position}{reason}")
        self._place = place
        if job.phase is not None and job.phase != self._phase:
            self._print_line(job.phase)
            self._phase = job.phase
        if job.tracking_url is not None and job.tracking_url != self._tracking_url:
            self._console.print(f"  {escape_markup(escape(job.tracking_url))}", soft_wrap=True)
            self._tracking_url = job.tracking_url
        if job.progress is not None:
            self._show_training(job.progress)

    def _print_line(self, text: str) -> None:
        self._console.print(f"[cyan]•[/cyan] {escape_markup(escape(text))}", soft_wrap=True)

    def _show_training(self, training: Training) -> None:
        loss, speed, left = describe_training(training)
        if self._bar is None:
            self._bars.start()
            self._bar = self._bars.add_task("training", total=training.total_steps, loss="-", speed="-", left="-")
        self._bars.update(self._bar, completed=training.step, loss=loss, speed=speed, left=left)
        percent = training.percent or 0.0
        if not self._console.is_terminal and percent >= self._shown_percent + PERCENT_PER_LINE:
            self._shown_percent = percent
            self._console.print(
                f"  step {training.step} of {training.total_steps}  loss {loss}  {speed} tokens/s  {left} left"
            )


def describe_check(check: ServingCheck) -> str:
    """Format a serving check in a line, without its findings, which are among the job's warnings."""
    return "; ".join([check.status, *check.list_facts()])


def describe_training(training: Training) -> tuple[str, str, str]:
    """Format loss, tokens per second and time left (min:s); `-` for what is not known yet."""
    minutes, seconds = divmod(int(training.eta_seconds or 0), 60)
    return (
        "-" if training.loss is None else f"{training.loss:.3f}",
        "-" if training.tokens_per_second is None else f"{training.tokens_per_second:.0f}",
        "-" if training.eta_seconds is None else f"{minutes}:{seconds:02d}",
    )
