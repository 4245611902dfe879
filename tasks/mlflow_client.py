"""Opens MLflow's own client with the credentials of the settings."""

import os
from typing import TYPE_CHECKING

from jobs.mlflow_server import MlflowServer
from jobs.settings import Settings

if TYPE_CHECKING:
    from mlflow import MlflowClient


def open_mlflow_client(settings: Settings) -> "MlflowClient":
    """A client for tracking and registry. MLflow reads credentials from the environment, so they are put there."""
    from mlflow import MlflowClient  # takes seconds to import, so only where it is needed

    os.environ.update(MlflowServer.find(settings).environment())
    return MlflowClient(settings.mlflow_tracking_uri, registry_uri=settings.mlflow_tracking_uri)
