"""TRL's SFTTrainer, made fast on a CPU and exact in evaluation."""

from pathlib import Path
from typing import Any, Literal

import torch
from accelerate.utils import is_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.trainer_utils import EvalLoopOutput
from trl import SFTTrainer

from sft.checkpoints import seal_checkpoint
from sft.errors import TrainingDiverged
from sft.loss import sum_supervised_nll
from sft.packing import DOCUMENT_ATTENTION, register_document_attention

Layout = Literal["documents", "padded", "trl"]


class SupervisedTrainer(SFTTrainer):  # type: ignore[misc]  # trl is untyped here
    """SFTTrainer with another loss path where `layout` asks for it.

    - `documents`: rows laid end to end, attention run per document, head and loss on supervised positions only;
    - `padded`: padded rows, head and loss on supervised positions only;
    - `trl`: TRL's own path (its fused head scores supervised positions alone on CUDA).

    The loss is the same in all: the mean over the supervised tokens of all batches of an optimizer step.
    Evaluation weighs every supervised token alike too, where the Trainer's own weighs batches.
    """

    def __init__(self, *args: Any, layout: Layout, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.layout = layout
        self.step_loss = 0.0  # of the optimizer step at work, summed over its batches
        self.grad_norm: float | None = None
        self.trained_tokens = 0

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Mean negative log-likelihood of the supervised tokens, a scalar."""
        if self.layout == "trl" or return_outputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        total, count = sum_nll(self.model, inputs)
        return total / torch.as_tensor(count if num_items_in_batch is None else num_items_in_batch).clamp(min=1)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """One batch forward and backward. Raises TrainingDiverged when the loss is NaN or infinite."""
        mask = inputs.get("attention_mask")
        self.trained_tokens += int(inputs["input_ids"].numel() if mask is None else mask.sum())
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        self.step_loss += loss.item()
        if not loss.isfinite():
            raise TrainingDiverged(
                f"the loss became {loss.item()} at step {self.state.global_step + 1} of {self.state.max_steps}; "
                f"lower learning_rate (it is {self.args.learning_rate}) or look for broken rows in the data"
            )
        return loss

    def evaluation_loop(
        self, dataloader: Any, description: str, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any
    ) -> EvalLoopOutput:
        """The mean loss over all supervised tokens of the held-out rows, whatever batch they came in."""
        self.model.eval()
        sums = torch.zeros(2, dtype=torch.float64)
        for inputs in dataloader:
            prepared = self._prepare_inputs(inputs)
            with torch.no_grad(), self.compute_loss_context_manager():
                total, count = (
                    sum_fused_nll(self.model, prepared) if self.layout == "trl" else sum_nll(self.model, prepared)
                )
            sums += torch.stack([total.detach().double(), count.double()]).cpu()
        total, count = self.accelerator.reduce(sums.to(self.args.device), "sum").tolist()
        metrics = {f"{metric_key_prefix}_loss": total / max(count, 1), f"{metric_key_prefix}_supervised_tokens": count}
        return EvalLoopOutput(None, None, metrics, self.num_examples(dataloader))

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """None: checkpoints need no card."""

    def _send_telemetry(self) -> None:
        """None: nothing about a user's training leaves the machine."""

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        self.grad_norm = float(norm)
        return norm

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        seal_checkpoint(Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}")


def sum_nll(model: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Summed negative log-likelihood of a batch's supervised tokens, and their number; two scalars.

    Runs the backbone on every token and the head on the positions that predict a supervised one.
    """
    causal: Any = model.get_base_model() if is_peft_model(model) else model
    features = {name: value for name, value in inputs.items() if name != "labels"}
    hidden = causal.base_model(**features | {"use_cache": False}).last_hidden_state[:, :-1]  # (B, T-1, D)
    targets = inputs["labels"][:, 1:].flatten()  # (B * (T-1),)
    positions = (targets != -100).nonzero().squeeze(1)
    states = hidden.flatten(0, 1).index_select(0, positions)  # (N, D)
    head = causal.get_output_embeddings()
    return sum_supervised_nll(states, head.weight, head.bias, targets[positions]), torch.tensor(len(positions))


def sum_fused_nll(model: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """As `sum_nll`, through TRL's fused head."""
    outputs = model(**inputs | {"use_cache": False}, fused_lm_head=True)
    return -outputs.log_probs.sum(), outputs.label_mask.sum()


def choose_layout(model: PreTrainedModel) -> Layout:
    """The fastest layout this model gets the right loss in: found by trying, not by its name.

    On a CPU the answer of `documents` and `padded` for two short random documents is compared with the model's own.
    In the first case the model is left with its attention run by document.
    """
    if model.device.type != "cpu":
        return "trl"
    was_training, attention = model.training, model.config._attn_implementation
    model.eval()
    try:
        generator = torch.Generator().manual_seed(0)
        vocabulary = model.get_input_embeddings().weight.shape[0]
        documents = [torch.randint(vocabulary, (1, length), generator=generator) for length in (6, 9)]
        with torch.no_grad():
            wanted = sum(_sum_plain_nll(model, document) for document in documents)
            if not _agrees(sum(sum_nll(model, {"input_ids": ids, "labels": ids})[0] for ids in documents), wanted):
                return "trl"
            if _set_attention(model, DOCUMENT_ATTENTION) and _isolates(model, documents, wanted):
                return "documents"
        _set_attention(model, attention)
        return "padded"
    finally:
        model.train(was_training)


def _set_attention(model: PreTrainedModel, name: str) -> bool:
    """Whether the model's attention is now this one; some models know no other than their own."""
    register_document_attention()
    if model.config._attn_implementation != name:
        try:
            model.set_attn_implementation(name)
        except ValueError:
            return False
    return bool(model.config._attn_implementation == name)


def _isolates(model: PreTrainedModel, documents: list[Tensor], wanted: Any) -> bool:
    """Whether documents laid end to end give the loss they give alone, and the first never touches the second."""
    first, second = documents
    bounds = torch.tensor([0, first.shape[1], first.shape[1] + second.shape[1]], dtype=torch.int32)
    features: dict[str, Any] = {
        "position_ids": torch.cat([torch.arange(ids.shape[1]) for ids in documents])[None],
        "cu_seq_lens_q": bounds,
        "cu_seq_lens_k": bounds,
        "max_length_q": second.shape[1],
        "max_length_k": second.shape[1],
    }
    losses = []
    for beginning in (first, first.flip(1)):
        ids = torch.cat([beginning, second], dim=1)
        labels = ids.clone()
        labels[:, [0, first.shape[1]]] = -100
        try:
            whole, _ = sum_nll(model, {"input_ids": ids, "labels": labels, **features})
            labels[:, : first.shape[1]] = -100
            last, _ = sum_nll(model, {"input_ids": ids, "labels": labels, **features})
        except TypeError:  # a model that takes no document bounds
            return False
        losses.append((whole, last))
    return _agrees(losses[0][0], wanted) and bool(torch.allclose(losses[0][1], losses[1][1], rtol=1e-6))


def _sum_plain_nll(model: PreTrainedModel, ids: Tensor) -> Tensor:
    logits = model(input_ids=ids, use_cache=False).logits.float()
    return nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:], reduction="sum")


def _agrees(found: Any, wanted: Any) -> bool:
    narrow = 2e-2  # what bf16 rounding may do; a wrong head or mask shows far more
    return abs(float(found) - float(wanted)) <= narrow * abs(float(wanted))
