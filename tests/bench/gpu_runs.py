"""One case of `make gpu-check`, in the calling process: speed, memory and losses of a few steps."""

import shutil
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PrinterCallback, TrainerCallback

from sft.config import SFTConfig
from sft.data.tokenization import PreparedData, prepare
from sft.models.loading import quiet_transformers, time_product
from tests.bench.gpu_cases import Case, Rows

LONGEST = 2048  # tokens of a row
LEARNING_RATE = 1e-4
# Dense bf16 FLOPs a second, from NVIDIA's data sheets; the first name that the device's contains.
PEAK_FLOPS = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10": 125e12,
    "4090": 165e12,
    "3090": 71e12,
}


def preload() -> None:
    """Import what the cases need, for processes that are forked from this one."""
    import trl.trainer.sft_trainer  # noqa: F401

    import sft.planning.plan
    import sft.training.session  # noqa: F401


class Clock(TrainerCallback):  # type: ignore[misc]  # transformers is untyped here
    """The time and the loss at each step's end, and the work of the batches that were drawn for it."""

    def __init__(self, trainer: Any, count_work: Callable[[list[dict[str, Any]]], tuple[int, float]]) -> None:
        self.ends: list[float] = []
        self.losses: list[float] = []
        self.work: list[tuple[int, float]] = []  # tokens and FLOPs of each batch
        self.trainer = trainer
        collate = trainer.data_collator

        def collate_and_count(examples: list[dict[str, Any]]) -> Any:
            self.work.append(count_work(examples))
            return collate(examples)

        trainer.data_collator = collate_and_count

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Wait for the device and note the time."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())
        if hasattr(self.trainer, "step_loss"):
            self.losses.append(self.trainer.step_loss)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        """Stock TRL's loss, which it logs each step."""
        if logs and "loss" in logs and not hasattr(self.trainer, "step_loss"):
            self.losses.append(logs["loss"])


def build_config(case: Case, rows: Rows, steps: int) -> SFTConfig:
    """The configuration of a case."""
    return SFTConfig(
        base_model="checked",
        dataset_name="rows",
        dataset_format="alpaca",
        template_name="chatml",
        validation_split=0.0,
        max_seq_length=LONGEST if case.model != "tiny" else 128,
        batch_size=rows.batch // case.fields.get("num_devices", 1),
        gradient_accumulation_steps=1,
        max_steps=steps,
        learning_rate=LEARNING_RATE,
        scheduler_type="constant",
        warmup_ratio=0.0,
        save_steps=10**6,
        logging_steps=1,
        # On a CPU in fp32, so that losses can be compared closely.
        mixed_precision="auto" if torch.cuda.is_available() else "none",
        **case.fields,
    )


def run_case(case: Case, rows: Rows, model_path: Path, file: Path, folder: Path, steps: int, warm: int) -> Any:
    """Train `steps` steps, of which the first `warm` are not timed; plain values."""
    config = build_config(case, rows, steps)
    prepared = prepare(config, model_path, file, folder / "rows")
    trainer, train = (_open_stock if case.stock else _open_ours)(case, config, prepared, model_path, folder)
    draw_adapters(trainer.model)
    clock = Clock(trainer, build_counter(case, trainer.model))
    trainer.add_callback(clock)
    with quiet_transformers():
        train()
    peak = _measure_peak()
    seconds = clock.ends[-1] - clock.ends[warm - 1]
    each = trainer.args.gradient_accumulation_steps
    tokens, flops = (sum(values) for values in zip(*clock.work[warm * each : steps * each], strict=True))
    result = {
        "model": case.model,
        "layout": getattr(trainer, "layout", "trl"),
        "attention": trainer.model.config._attn_implementation,
        "tokens_per_second": round(tokens / seconds, 1),
        "flops_per_second": flops / seconds,
        "peak_bytes": peak,
        "losses": [round(loss, 6) for loss in clock.losses],
    }
    if case.is_planned:
        result["planned_bytes"] = plan_peak(config, prepared, model_path, folder)
    return result


def _open_ours(case: Case, config: SFTConfig, prepared: PreparedData, model_path: Path, folder: Path) -> Any:
    from sft.training.session import TrainingSession

    session = TrainingSession(config, prepared, model_path, folder / "out")
    return session.trainer, session.train


def _open_stock(case: Case, config: SFTConfig, prepared: PreparedData, model_path: Path, folder: Path) -> Any:
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig as TrainerArguments
    from trl import SFTTrainer

    has_gpu = torch.cuda.is_available()
    is_packed = case.stock == "flash"
    options: dict[str, Any] = {"attn_implementation": "flash_attention_2"} if is_packed else {}
    # Frozen weights in bf16, as ours are; trained ones in fp32.
    dtype = torch.bfloat16 if has_gpu and config.use_lora else torch.float32
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=dtype, **options)
    arguments = TrainerArguments(
        output_dir=str(folder / "stock"),
        per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=1,
        learning_rate=LEARNING_RATE,
        max_steps=config.max_steps,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        lr_scheduler_type="constant",
        bf16=has_gpu and torch.cuda.is_bf16_supported(including_emulation=False),
        activation_checkpointing=case.stock == "defaults",
        packing=is_packed,
        max_length=config.max_seq_length if is_packed else None,
        logging_steps=1,
        seed=config.seed,
        save_strategy="no",
        dataloader_pin_memory=has_gpu,
        use_cpu=not has_gpu,
        report_to="none",
        disable_tqdm=True,
        # Rows are tokenized already; packing is a part of the preparation.
        dataset_kwargs={"skip_prepare_dataset": not is_packed},
    )
    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=0.0,
        target_modules="all-linear",
    )
    trainer = SFTTrainer(
        model,
        args=arguments,
        train_dataset=prepared.load_train().select_columns(["input_ids", "labels"]),
        processing_class=AutoTokenizer.from_pretrained(model_path),
        peft_config=lora if config.use_lora else None,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer, trainer.train


def draw_adapters(model: nn.Module) -> None:
    """Draw every `lora_A` anew by its name alone, so that two libraries start from the same adapter."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_A" in name:
                weight.copy_(draw(name, weight.shape))


def draw(name: str, shape: torch.Size) -> Tensor:
    """Numbers for the weight (R, I) of this name."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return torch.randn(shape, generator=generator) * shape[1] ** -0.5


def build_counter(case: Case, model: nn.Module) -> Callable[[list[dict[str, Any]]], tuple[int, float]]:
    """Counts tokens of a batch, and the FLOPs that its loss and gradient need.

    A weight costs 2 FLOPs a token forward and 2 for the gradient of its input, and 2 more if it is trained; the head
    the same for supervised tokens only; causal attention 2 H Dh L^2 forward for a document of L tokens, and twice that
    backward. Adapters are left out.
    """
    base: PreTrainedModel = model.get_base_model() if hasattr(model, "get_base_model") else model
    settings = base.config
    width = settings.hidden_size // settings.num_attention_heads
    layer = settings.hidden_size * width * 2 * (settings.num_attention_heads + settings.num_key_value_heads)
    layer += 3 * settings.hidden_size * settings.intermediate_size
    each = 4 if case.fields.get("use_lora", True) else 6

    def count(examples: list[dict[str, Any]]) -> tuple[int, float]:
        lengths = [length for example in examples for length in example.get("seq_lengths", [len(example["input_ids"])])]
        supervised = sum(label != -100 for example in examples for label in example["labels"])
        body = each * layer * settings.num_hidden_layers * sum(lengths)
        head = each * settings.hidden_size * settings.vocab_size * supervised
        attention = 3 * 2 * settings.num_hidden_layers * settings.hidden_size * sum(length**2 for length in lengths)
        return sum(lengths), float(body + head + attention)

    return count


def plan_peak(config: SFTConfig, prepared: PreparedData, model_path: Path, folder: Path) -> int:
    """The peak in bytes that a plan tells."""
    from sft.planning.plan import make_plan

    plan = make_plan(config, prepared, model_path, [], shutil.disk_usage(folder).free)
    return int(plan["memory"]["peak_bytes"])


def _measure_peak() -> int:
    from sft.training.arguments import measure_peak_memory

    return measure_peak_memory()


def describe_device() -> dict[str, Any]:
    """Name, versions, the FLOPs a second of its data sheet (None if unknown) and of a large matrix product here."""
    if not torch.cuda.is_available():
        size, dtype, name = 768, torch.float32, "cpu"
        seconds = time_product(dtype, size, 3)
    else:
        size, name = 8192, torch.cuda.get_device_name()
        dtype = torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
        seconds = time_product(dtype, size, 20, "cuda")
    return {
        "device": name,
        "torch": torch.__version__,
        "peak_flops": next((flops for part, flops in PEAK_FLOPS.items() if part in name), None),
        "gemm_flops": 2.0 * size**3 / seconds,
    }
