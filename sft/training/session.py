"""Runs one training, from a prepared dataset to a saved adapter."""

import logging
import pickle
import time
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft import PeftModel
from transformers import PrinterCallback, set_seed

from sft.adapting.adaptation import describe_adaptation, summarize_adaptation
from sft.adapting.adapters import add_adapter
from sft.callbacks import OnEvent
from sft.chat.templates import apply_template
from sft.checkpoints.best import find_best
from sft.checkpoints.folders import clear_leftovers, find_newest_checkpoint
from sft.checkpoints.stopping import CatchUp, list_stopping
from sft.config import SFTConfig
from sft.data.mixing import AnyRows, MixedData
from sft.errors import CheckpointUnusable
from sft.files.publication import Publishing
from sft.kernels.packing import pack_rows
from sft.models.companions import make_folder, settle_generation
from sft.models.hardware import check_hardware, inspect_hardware, use_gpu
from sft.models.library_warnings import collecting_warnings
from sft.models.loading import list_unread_weights, load_model, load_tokenizer, name_precision, quiet_transformers
from sft.models.model_class import build_empty
from sft.models.model_settings import describe_repairs
from sft.training.arguments import build_arguments, measure_peak_memory, settle_checkpointing, trains_every_weight
from sft.training.batches import warn_of_long_rows
from sft.training.embeddings import check_positions, check_vocabulary
from sft.training.event_callback import EventSender
from sft.training.interruption import StepGuard, keep_last_step
from sft.training.layout import check_packing, choose_layout, explain_padding
from sft.training.learning import LearningCheck
from sft.training.leaving import free_model, measure_rows
from sft.training.model_card import Provenance
from sft.training.optimizers import check_optimizer
from sft.training.precision import copy_adapters, keep_adapters_exact, settle_dtype, tf32_products
from sft.training.result_writer import ResultWriter
from sft.training.trainer import SupervisedTrainer

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)


class TrainingSession:
    """Loads the model, evaluates, trains and saves, on the calling thread.

    Attributes:
        adaptation: what is trained (`trainable_parameters`, `parameters`, `share`, `modules`), and the parts of the
            model that are `left_out`, with reasons.
        warnings: sentences about unexpected properties of this model and run; they are logged too.

    Args:
        prepared: the result of `sft.data.tokenization.prepare` for the same config and model, or a mix of such.
        model_path: folder of the base model, from `sft.models.loading.find_model`.
        output_dir: checkpoints go to its `checkpoints`, unless `checkpoint_dir` is set; training resumes from the
            newest intact one there.
        publishing: context entered around the rename that publishes a checkpoint or the result.
        on_event: called with a name (`begin`, `step`, `log`, `epoch`, `evaluate`, `checkpoint`, `end`) and values.

    Raises:
        InvalidConfig: this machine or model does not support a value.
        ModelNotFound: the model or the adapter in adapter_path can't be read.
    """

    def __init__(
        self,
        config: SFTConfig,
        prepared: AnyRows,
        model_path: Path,
        output_dir: Path,
        on_event: OnEvent | None = None,
        checkpoint_dir: Path | None = None,
        publishing: Publishing = nullcontext,
    ) -> None:
        self.warnings: list[str] = check_hardware(config, inspect_hardware())
        use_gpu(config.device_map)
        check_optimizer(config)
        set_seed(config.seed)
        self.config = config
        self.model_path = model_path
        self.on_event: OnEvent = on_event or (lambda name, values: None)
        self.output_dir = output_dir
        self.checkpoint_dir = checkpoint_dir or output_dir / "checkpoints"
        make_folder(output_dir, "output_dir")
        make_folder(self.checkpoint_dir, "checkpoint_dir")
        dtype = settle_dtype(config, self.checkpoint_dir)
        with collecting_warnings() as heard:
            self.tokenizer = load_tokenizer(model_path)
            apply_template(self.tokenizer, config.template_name, required=False)
            base = load_model(model_path, config, dtype)
        self.warnings += [*describe_repairs(model_path), *list_unread_weights(base), *heard]
        self.warnings += check_vocabulary(base, self.tokenizer, prepared, config)
        self.warnings += check_positions(base, prepared, config)
        self.warnings += settle_generation(base, self.tokenizer, model_path)
        self._writer = ResultWriter(config, model_path, self.tokenizer)
        layout = choose_layout(base, config.attn_implementation, dtype)
        self.warnings += explain_padding(base, layout)
        train_rows, eval_rows = prepared.load_train(), prepared.load_eval()
        eval_parts = prepared.load_eval_parts()
        checkpointing = settle_checkpointing(
            config, lambda: build_empty(model_path), layout, prepared, dtype, base.device.type
        )
        if config.packing:
            check_packing(base, layout)
            train_rows = pack_rows(train_rows, config.max_seq_length)
            eval_rows = eval_rows and pack_rows(eval_rows, config.max_seq_length)
            eval_parts = {label: pack_rows(part, config.max_seq_length) for label, part in eval_parts.items()}
        if config.max_batch_tokens:
            self.warnings += warn_of_long_rows(train_rows["length"][:], config.max_batch_tokens)
        self._sender, self._guard, catch_up = EventSender(self.on_event), StepGuard(), CatchUp()
        self._learning = LearningCheck()
        stopping = list_stopping(config.early_stopping_patience, eval_rows is not None)
        with quiet_transformers(), collecting_warnings() as heard:
            model, adaptation = add_adapter(base, config)
            start = copy_adapters(model)
            self.trainer = SupervisedTrainer(
                model,
                layout=layout,
                args=build_arguments(
                    *(config, layout, dtype, self.checkpoint_dir, checkpointing, eval_rows is not None),
                    trains_every_weight(base, adaptation),
                ),
                train_dataset=train_rows,
                eval_dataset=eval_rows,
                processing_class=self.tokenizer,
                peft_config=adaptation.settings,
                callbacks=[self._learning, self._sender, self._guard, catch_up, *stopping],
                max_batch_tokens=config.max_batch_tokens,
                loraplus_lr_ratio=config.loraplus_lr_ratio,
                neftune_noise_alpha=config.neftune_noise_alpha,
            )
        keep_adapters_exact(self.trainer.model, start)
        self.trainer.remove_callback(PrinterCallback)
        self._sender.trainer = catch_up.trainer = self._learning.trainer = self.trainer
        self.trainer.publishing = publishing
        self.trainer.eval_parts = eval_parts
        self.trainer.name_row = prepared.name_row if isinstance(prepared, MixedData) else None
        self.trainer.precision = name_precision(dtype)
        self.warnings += [*adaptation.warnings, *heard]
        self.adaptation = describe_adaptation(self.trainer.model, adaptation.left_out)
        self._log_adaptation()
        self._sender.begin = {
            "rows": len(train_rows),
            "parameters": self.adaptation["parameters"],
            "trainable_parameters": self.adaptation["trainable_parameters"],
            "adapted": self.adaptation,
            "device": str(self.trainer.args.device),
            "dtype": str(dtype).removeprefix("torch."),
            "layout": layout,
            "gradient_checkpointing": checkpointing,
        }

    def list_warnings(self) -> list[str]:
        """Return `warnings`, for callers in another process."""
        return self.warnings

    def _warn(self, sentences: list[str]) -> None:
        self.warnings += sentences
        for sentence in sentences:
            logger.warning("%s", sentence)

    def _log_adaptation(self) -> None:
        logger.info("Training %s", summarize_adaptation(self.adaptation))
        for sentence in self.warnings:
            logger.warning("%s", sentence)

    def evaluate(self) -> dict[str, Any]:
        """`eval_loss`, the mean negative log-likelihood of the held-out supervised tokens (None without any).

        If the held-out rows are of several datasets, also `eval_loss/<label>` of each.
        """
        if self.trainer.eval_dataset is None:
            return {"eval_loss": None}
        with tf32_products(self.trainer.precision):
            metrics: dict[str, Any] = self.trainer.evaluate()
        return metrics

    @property
    def keeps_start(self) -> bool:
        """Whether the start can still be evaluated after training: a new adapter can be disabled."""
        return isinstance(self.trainer.model, PeftModel) and self.config.adapter_path is None

    def evaluate_start(self) -> dict[str, Any]:
        """`evaluate` the model as it was before training, as of step 0; after training only with `keeps_start`."""
        is_trained = self.trainer.state.global_step > 0
        if is_trained and not self.keeps_start:
            raise RuntimeError("the start is gone: evaluate it before training")
        with self._sender.at_start(), self.trainer.model.disable_adapter() if is_trained else nullcontext():
            return self.evaluate()

    def measure_rows(self, rows: "Dataset") -> dict[str, Any]:
        """The `loss` of these prepared rows as `evaluate` measures it, and the model's `device` and `dtype`."""
        if self.config.packing:
            rows = pack_rows(rows, self.config.max_seq_length)
        device = str(self.trainer.args.device)
        device = "cpu" if device.startswith("cpu") else device  # "cpu:0" in one of several processes
        return {"loss": measure_rows(self.trainer, rows), "device": device, "dtype": self._sender.begin["dtype"]}

    def free_model(self) -> None:
        """Free the memory of model and optimizer; afterwards only `save_merged`, which reads files, may be called."""
        free_model(self.trainer)

    def train(self) -> dict[str, Any]:
        """Train to the end, from the newest intact checkpoint if there is one.

        Returns `train_loss` (mean over all steps), `steps`, `tokens` (read in this call, prompts included),
        `tokens_per_second`, `train_seconds`, `peak_memory_bytes` (of this process, or of the CUDA device). With
        `early_stopping_patience` the model is then that of the best evaluation, and the result also has
        `best_step`, `best_eval_loss` and `stopped_early`.

        A run stopped by a signal (whose handler raises a BaseException) saves a checkpoint of its last complete
        step.

        Raises:
            LossNotFinite: the loss or its gradient became NaN or infinite.
            LossExploded: the loss stayed far above its first values.
            NothingLearned: training left the weights unchanged.
            InvalidConfig: no step would have a learning rate above 0, or output_dir can't be written to.
            ModelUnusable: a part of the model that belongs to the result can't be saved.
            DiskFull: a checkpoint could not be written.
            CheckpointUnusable: a checkpoint contains pickled objects, or the best one is damaged.
        """
        self._learning.remember(self.trainer.model)
        if self.trainer.args.should_save:
            with self.trainer.publishing(), quiet_transformers():
                self._writer.try_writing(self.trainer.model, self.output_dir)
                clear_leftovers(self.checkpoint_dir)
        checkpoint = find_newest_checkpoint(self.checkpoint_dir, bool(self.config.early_stopping_patience))
        started_at = time.monotonic()
        with quiet_transformers(), tf32_products(self.trainer.precision):
            output = self._run(checkpoint)
        seconds = time.monotonic() - started_at
        result = {
            "train_loss": self.trainer.step_losses / max(self.trainer.counted_steps, 1),
            "steps": output.global_step,
            "tokens": self.trainer.trained_tokens,
            "tokens_per_second": self.trainer.trained_tokens / seconds,
            "train_seconds": seconds,
            "peak_memory_bytes": measure_peak_memory(),
        }
        if self.config.early_stopping_patience:
            result |= self._restore_best()
        self._warn(self._learning.check(self.trainer.model))
        self.on_event("end", result)
        return result

    def _run(self, checkpoint: Path | None) -> Any:
        try:
            return self.trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        except pickle.UnpicklingError as error:  # raised by weights_only before any object is loaded
            raise CheckpointUnusable(
                f"checkpoint {checkpoint} contains pickled objects and is not loaded; delete it and start the job again"
            ) from error
        except Exception:
            raise
        except BaseException:  # a signal handler raised
            if self.config.use_lora:  # a whole model takes longer to write than a stop may
                keep_last_step(self.trainer, self._guard)
            raise
        finally:
            self._guard.release()

    def save(self, adapter_dir: Path, provenance: Provenance | None = None) -> Path:
        """`save_adapter`, and with `save_merged_model` then `save_merged`. Returns `adapter_dir`."""
        self.save_adapter(adapter_dir, provenance)
        if self.config.save_merged_model and self.config.use_lora:
            self.save_merged(adapter_dir, provenance)
        return adapter_dir

    def save_adapter(self, adapter_dir: Path, provenance: Provenance | None = None) -> Path:
        """Publish the adapter (with `use_lora` false the model) with tokenizer, chat template and generation config.

        Returns `adapter_dir`. Raises DiskFull.

        Args:
            provenance: data and results, for the model card.
        """
        with self.trainer.publishing():
            self._writer.write(self.trainer.model, adapter_dir, self._describe(), provenance or Provenance())
        return adapter_dir

    def save_merged(self, adapter_dir: Path, provenance: Provenance | None = None) -> Path:
        """Publish the merged model, in `merged` beside a saved adapter; returns its folder.

        It is made from the files of the adapter and of the base model, in constant memory.

        Raises:
            MergeFailed: there is too little memory.
            DiskFull: the merged model does not fit.
        """
        return self._writer.write_merged(
            self.trainer.model, adapter_dir, self._describe(), provenance or Provenance(), self.trainer.publishing
        )

    def _describe(self) -> dict[str, Any]:
        return {name: self._sender.begin[name] for name in ("rows", "dtype")} | {"adaptation": self.adaptation}

    def _restore_best(self) -> dict[str, Any]:
        """Load the best checkpoint's weights, and return its step and loss."""
        state = self.trainer.state
        best = find_best(state.log_history)
        assert best is not None  # noqa: S101 - the Trainer evaluates after the last step in any case
        if best.step != state.global_step:
            self.trainer.load_weights(best.step)
        return {
            "best_step": best.step,
            "best_eval_loss": best.eval_loss,
            "stopped_early": state.global_step < state.max_steps,
        }
