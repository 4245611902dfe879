"""`from app.sft import SFTConfig, SFTTrainer, SFTCallback`"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

from jobs.folders import checkpoint_folder, job_folder
from jobs.settings import Settings
from jobs.spec import JobSpec
from sft.callbacks import SFTCallback, send_to_callbacks
from sft.config import SFTConfig

__all__ = ["SFTCallback", "SFTConfig", "SFTTrainer"]


class SFTTrainer:
    """Trains in this process, without a server, a queue or the registry.

    Args:
        config: what to train, on what, and how.
        callbacks: called on this thread with this trainer; their exceptions are logged.
    """

    def __init__(self, config: SFTConfig, callbacks: Sequence[SFTCallback] | None = None) -> None:
        self.config = config
        self.callbacks = list(callbacks or [])
        self.job_id = str(uuid4())  # the name of this training's folder, like a job's id

    def train(self) -> dict[str, Any]:
        """Fetch the data, train, evaluate and save; model and dataset are found as for a job.

        Returns `train_loss, eval_loss` (None without held-out rows), `adapter_path, output_dir, model_name,
        model_version` (None, since it is not registered) and `metrics`. `on_train_end` gets it as `result`.

        Raises:
            TuneyardError: InvalidConfig, ModelNotFound, DatasetNotFound, InvalidDataset, TemplateNotFound,
                TrainingDiverged or DiskFull, as a job of this configuration would fail with.
        """
        send = send_to_callbacks(self.callbacks, self)
        try:
            result = self._train()
        except Exception as error:
            send("end", {"status": "failed", "error": str(error), "result": None})
            raise
        send("end", {"status": "completed", "error": None, "result": result})
        return result

    def _train(self) -> dict[str, Any]:
        from sft.data.tokenization import PreparedData, prepare
        from sft.devices.launcher import open_session
        from sft.models.loading import find_model  # imports torch, which takes seconds, so only here
        from sft.training.precision import fix_precision
        from tasks.dataset_mix import prepare_all, resolve_all
        from tasks.dataset_version import DatasetVersion
        from tasks.model import locate_adapter
        from tasks.register import describe_provenance
        from tasks.tokenize import CACHE_FOLDER

        settings, config = Settings(), self.config
        folder = job_folder(settings, config, self.job_id)
        checkpoints = checkpoint_folder(settings, config, self.job_id)
        model = Path(find_model(config.base_model, settings.model_root, settings.allowed_model_roots))
        dataset = resolve_all(config, settings)
        if config.adapter_path is not None:
            start = locate_adapter(config.adapter_path, settings, folder)
            config = config.model_copy(update={"adapter_path": str(start)})

        def prepare_one(own_config: SFTConfig, version: DatasetVersion) -> PreparedData:
            return prepare(own_config, model, version.train_file, settings.home / CACHE_FOLDER, version.eval_file)

        rows = prepare_all(config, dataset, prepare_one)
        config = fix_precision(config, settings.home, settings.dtype, folder, checkpoints)
        session = open_session(config, rows, model, folder, self._pass_on, checkpoints)
        training = session.train()
        evaluation = session.evaluate()
        return {
            "train_loss": training["train_loss"],
            "eval_loss": evaluation["eval_loss"],
            "adapter_path": str(session.save(folder / "adapter", describe_provenance(dataset, training | evaluation))),
            "output_dir": str(folder),
            "model_name": JobSpec.build(config=self.config).registered_name,
            "model_version": None,
            "metrics": training | evaluation,
        }

    def _pass_on(self, event: str, values: dict[str, Any]) -> None:
        if event != "end":  # of the steps; evaluation and saving are still to come
            send_to_callbacks(self.callbacks, self)(event, values)
