"""The secret of the processes of one attempt at a job, made by their keeper (`jobs.storage.claims`)."""

import os

VARIABLE = "TUNEYARD_JOB_SECRET"


def make_secret() -> None:
    """Make a secret for the processes that this one starts."""
    os.environ[VARIABLE] = os.urandom(32).hex()
