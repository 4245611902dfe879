"""Warnings about a job's configuration and data, before it runs."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sft.config import SFTConfig, count_warmup_steps
from sft.planning.shape import ModelShape
from sft.planning.tokens import MAX_LISTED, TokenRows, find_duplicates, find_overlap
from sft.training.batches import warn_of_long_rows

LORA_RATES = (5e-5, 2e-3)
FULL_RATES = (1e-6, 1e-4)
SHORT_ANSWER = 3  # tokens, including the end-of-turn token
SHORT_SHARE = 0.1  # share of rows from which near-empty answers are reported
FEW_ROWS = 30
FEW_STEPS = 10

Advice = dict[str, Any]


def advise(
    config: SFTConfig,
    shape: ModelShape,
    stats: dict[str, dict[str, int] | None],
    train: TokenRows,
    held_out: TokenRows | None,
    steps: int,
    scale: float = 1.0,
) -> list[Advice]:
    """Collect warnings: each has a stable `code`, a `message`, and `rows` of the data file if it is about rows.

    Args:
        scale: number of rows that each training row stands for.
    """
    return [
        *_check_rate(config),
        *_check_rows(config, stats, scale),
        *_check_content(train, held_out),
        *_check_batches(config, train, scale),
        *_check_steps(config, steps, held_out is not None),
        *_check_model(config, shape, train),
    ]


def advise_resources(memory: dict[str, Any], disk: dict[str, Any], config: SFTConfig, kind: str) -> Iterator[Advice]:
    """Warnings about too little memory or disk space. `kind` of device: `cpu` or `cuda`."""
    needed, free = f"the job needs about {memory['peak_bytes'] / 1e9:.1f} GB", f"{memory['free_bytes'] / 1e9:.1f} GB"
    if not memory["fits"]:
        largest = memory["largest_batch_size"]
        remedy = f"batch_size {largest} fits" if largest else "no batch_size fits; lower max_seq_length"
        if largest >= config.batch_size:
            remedy = "lower max_batch_tokens" if config.max_batch_tokens else "close other programs"
        usable = f"{memory['usable_bytes'] / 1e9:.1f} GB"
        there = (
            f"the device has {usable}" if kind == "cuda" else f"{usable} are there for it once other jobs have ended"
        )
        if memory["usable_bytes"] == memory["free_bytes"] and kind == "cpu":
            there = f"{free} are free"
        yield _warn("memory", f"{needed} and {there}: {remedy}")
    elif not memory["fits_now"]:
        yield _warn(
            "memory_now",
            f"{needed} and {free} are free at the moment: it fits once other "
            + ("work on the device has" if kind == "cuda" else "jobs have")
            + " ended",
        )
    if not disk["fits"]:
        yield _warn(
            "disk",
            f"the job writes {disk['needed_bytes'] / 1e9:.1f} GB and {disk['free_bytes'] / 1e9:.1f} GB are free; "
            "lower save_total_limit",
        )


def _check_rate(config: SFTConfig) -> Iterator[Advice]:
    kind, (low, high) = ("LoRA", LORA_RATES) if config.use_lora else ("full fine-tuning", FULL_RATES)
    if not low <= config.learning_rate <= high:
        word = "low" if config.learning_rate < low else "high"
        usual = "2e-4" if config.use_lora else "1e-5"
        yield _warn(
            f"learning_rate_{word}",
            f"learning_rate {config.learning_rate:g} is {word} for {kind}: usual is {usual}, and {low:g} to {high:g} "
            "is the range to try",
        )


def _check_rows(config: SFTConfig, stats: dict[str, dict[str, int] | None], scale: float) -> Iterator[Advice]:
    counts = stats["train"] or {}
    rows, used = counts["rows"], counts["used"]
    left_out = {
        "invalid": "can't be read",
        "dropped": "have no supervised tokens",
        "too_long": f"are longer than max_seq_length {config.max_seq_length} and are left out",
    }
    for name, what in left_out.items():
        if counts[name]:
            yield _warn(f"rows_{name}", f"{counts[name]} of {rows} rows {what}")
    if counts["truncated"]:
        share = counts["truncated"] / rows
        most = "most rows are" if share > 0.5 else f"{counts['truncated']} of {rows} rows are"
        yield _warn("rows_truncated", f"{most} cut at max_seq_length {config.max_seq_length}, so answers end midway")
    if used * scale < FEW_ROWS:
        yield _warn("few_rows", f"only {round(used * scale)} rows to train on")
    if counts["supervised_tokens"] < 0.05 * counts["tokens"]:
        share = counts["supervised_tokens"] / counts["tokens"]
        yield _warn("little_supervised", f"only {share:.1%} of the tokens contribute to the loss")


def _check_content(train: TokenRows, held_out: TokenRows | None) -> Iterator[Advice]:
    if duplicates := find_duplicates(train):
        yield _warn("duplicates", f"{len(duplicates)} rows are duplicates of earlier ones", duplicates)
    if held_out is not None:
        whole, asked = find_overlap(train, held_out)
        if whole:
            yield _warn(
                "eval_overlap", f"{len(whole)} held-out rows are also trained on: eval_loss will be too low", whole
            )
        if asked:
            yield _warn(
                "eval_prompt_overlap",
                f"{len(asked)} held-out rows have the same prompt as a training row",
                asked,
            )
    short = [int(number) for number in train.numbers[train.supervised <= SHORT_ANSWER]]
    if len(short) > SHORT_SHARE * len(train.lengths):
        yield _warn("short_answers", f"{len(short)} answers are near-empty: at most {SHORT_ANSWER} tokens", short)


def _check_batches(config: SFTConfig, train: TokenRows, scale: float) -> Iterator[Advice]:
    """Warnings about batches that the rows can't fill, or that a row does not fit into."""
    rows, longest = round(len(train.lengths) * scale), int(train.lengths.max())
    wanted = config.get_effective_batch_size()
    if config.max_batch_tokens and config.max_batch_tokens < longest:
        beyond = [int(number) for number in train.numbers[train.lengths > config.max_batch_tokens]]
        [message] = warn_of_long_rows(train.lengths.tolist(), config.max_batch_tokens)
        yield _warn("rows_beyond_batch", message, beyond)
    elif not config.max_batch_tokens and not config.packing and wanted > rows:
        yield _warn(
            "batch_beyond_rows",
            f"an optimizer step takes {wanted} rows and there are {rows}: each epoch is one step of all of them; "
            "lower batch_size or gradient_accumulation_steps",
        )


def _check_steps(config: SFTConfig, steps: int, has_eval: bool) -> Iterator[Advice]:
    warmup = count_warmup_steps(steps, config.warmup_ratio)
    if steps < FEW_STEPS:
        yield _warn(
            "few_steps",
            f"the job has only {steps} optimizer steps of {config.get_effective_batch_size()} rows; lower "
            "gradient_accumulation_steps or batch_size, or raise num_epochs",
        )
    if warmup >= max(steps / 2, 2):
        yield _warn("long_warmup", f"{warmup} of {steps} steps warm up; lower warmup_ratio {config.warmup_ratio:g}")
    if config.eval_steps and config.eval_steps > steps:
        yield _warn("no_evaluation", f"eval_steps {config.eval_steps} is more than the job's {steps} steps")
    if not has_eval:
        yield _warn("no_held_out_rows", "no rows are held out, so there is no eval_loss; set validation_split")


def _check_model(config: SFTConfig, shape: ModelShape, train: TokenRows) -> Iterator[Advice]:
    longest = config.max_seq_length if config.packing else int(train.lengths.max())
    if shape.context is not None and longest > shape.context:
        yield _warn("beyond_context", f"rows of up to {longest} tokens for a model made for {shape.context}")
    if config.adapter_path and not Path(config.adapter_path).is_dir():
        yield _warn(
            "start_adapter",
            "the adapter in adapter_path is in the registry and not read before the job: counted with lora_r as "
            "configured",
        )


def _warn(code: str, message: str, rows: list[int] | None = None) -> Advice:
    return {"code": code, "message": message} | ({} if rows is None else {"rows": rows[:MAX_LISTED]})
