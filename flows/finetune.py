"""A job: one dataset version and one base model in, one registered adapter out."""

from typing import Any
from uuid import UUID

from prefect import flow
from prefect.runtime import flow_run

from flows.parameters import takes
from jobs.settings import Settings
from jobs.spec import JobSpec
from jobs.vocabulary import FLOW_NAME
from tasks.evaluate import evaluate
from tasks.journal import open_journal
from tasks.model import find_base_model, find_start_adapter, load_session
from tasks.register import register
from tasks.shared_rows import resolve_dataset, tokenize
from tasks.state_hooks import tag_job, write_end
from tasks.train import train


@flow(
    name=FLOW_NAME,
    validate_parameters=False,  # `JobSpec.build` does, with our own messages
    on_running=[tag_job],
    on_completion=[write_end],
    on_failure=[write_end],
    on_cancellation=[write_end],
)
@takes(JobSpec)
def finetune(**values: Any) -> dict[str, Any]:
    """Fine-tune a LoRA adapter and register it."""
    spec = JobSpec.build(**values)
    config, settings = spec.config, Settings()
    with open_journal(settings, UUID(flow_run.get_id()), spec) as journal:
        config = journal.spec.config  # of the first attempt
        model = find_base_model(config, journal)
        dataset = resolve_dataset(config, journal)
        start = find_start_adapter(config, journal)
        rows = tokenize(config, dataset, model, journal)
        session = load_session(config, rows, model, start, journal)
        journal.open_trackers(dataset)
        # A fresh adapter can be switched off, so its first step need not wait for the base model's evaluation.
        early = None if session.keeps_start else evaluate(session, journal, "base model", step=0)
        training = train(session, journal)
        after = evaluate(session, journal, "adapter", step=training["steps"])
        before = early or evaluate(session, journal, "base model", step=0)
        return register(session, journal, dataset, rows, before, training, after)
