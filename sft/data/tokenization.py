"""Tokenizes a data file into a folder of Arrow files with token ids and labels, cached by content."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft.chat.templates import check_template_name
from sft.config import SFTConfig
from sft.confinement import find_memory_limit, step
from sft.data.cache_key import describe_preparation, describe_tokens, digest, find_tokenizer_files
from sft.data.data_files import count_rows
from sft.data.encoding import SPLITS, BlockEncoder
from sft.data.forked_workers import count_cores
from sft.data.parts import list_parts
from sft.data.row_advice import advise_on_rows, count_skipped
from sft.data.row_blocks import read_blocks
from sft.data.row_report import Notes
from sft.data.row_sample import sample_blocks
from sft.data.shards import RowSource, has_files, lock_shards, write_shards
from sft.errors import InvalidDataset
from sft.files.publication import discard_folder, publish_folder

if TYPE_CHECKING:
    from datasets import Dataset

PARALLEL_BYTES = 8 << 20  # of data, from which on processes are worth their start
PROCESS_BYTES = 512 << 20  # of memory that a process may need


class PreparedData:
    """A folder with `train-00000.arrow`, perhaps `eval-00000.arrow`, further ones of large data, and `manifest.json`.

    Attributes:
        stats: counts of `SplitReport` by split (`train`, `eval`; None without held-out rows).
        notes: row numbers by split: `invalid` as pairs with the reason, `dropped`, `too_long`, `truncated`; the
            first 100 of each.
        reasons: by split, why rows can't be read: `reason`, `count` and the first `rows`.
        ignored: fields of rows and messages that have a value and are not used, with the number of rows.
        advice: what a user should know about these rows: pairs of a stable code and a sentence.
        longest: tokens of the longest row by split, 0 without any.
        largest_ids: the largest token id by split, -1 without any.
        sample: of a sample, the number of `rows` that were read and the number `of` rows there are; `eval_rows` and
            `eval_of` say so of held-out rows in a file of their own, and are 0 without it.
        was_cached: the folder was made by an earlier call.
    """

    def __init__(self, folder: Path, was_cached: bool) -> None:
        self.folder = folder
        self.was_cached = was_cached
        self.manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        self.stats: dict[str, dict[str, int] | None] = self.manifest["stats"]
        self.notes: dict[str, Notes] = self.manifest["notes"]
        self.reasons: dict[str, list[dict[str, Any]]] = self.manifest["reasons"]
        self.ignored: dict[str, int] = self.manifest["ignored"]
        self.longest: dict[str, int] = self.manifest["longest"]
        self.largest_ids: dict[str, int] = self.manifest["largest_ids"]
        self.sample: dict[str, int] | None = self.manifest["sample"]
        self.advice: list[tuple[str, str]] = [(code, message) for code, message in self.manifest["advice"]]

    @property
    def warnings(self) -> list[str]:
        """The sentences of `advice`."""
        return [message for _, message in self.advice]

    def describe_rows(self) -> dict[str, Any]:
        """Counts and reasons by split, and the ignored fields, for a job's result."""
        splits = {
            name: counts and counts | {"skipped": count_skipped(counts), "reasons": self.reasons[name]}
            for name, counts in self.stats.items()
        }
        return {**splits, "ignored": self.ignored}

    def measure_scales(self, max_samples: int | None) -> tuple[float, float]:
        """How many rows each training row and each held-out row stands for: 1, and more in a sample."""
        if self.sample is None:
            return 1.0, 1.0
        most = max_samples or self.sample["of"]
        scale = min(most, self.sample["of"]) / min(most, self.sample["rows"])
        has_own = self.sample["eval_rows"] > 0
        return scale, self.sample["eval_of"] / self.sample["eval_rows"] if has_own else scale

    def load_eval_parts(self) -> dict[str, "Dataset"]:
        """Held-out rows whose loss is also measured apart, by label: none, as they are of one dataset."""
        return {}

    def describe_parts(self) -> list[dict[str, Any]]:
        """Counts of each dataset of a mix: none."""
        return []

    def name_row(self, number: int) -> str:
        """The row of this number, for messages."""
        return str(number)

    def load_train(self) -> "Dataset":
        """Rows of `input_ids`, `labels` (-100: not supervised), `length` and `row`, the number in the file from 1.

        They stay on the disk: the files are memory-mapped.
        """
        return self._load("train")

    def load_eval(self) -> "Dataset | None":
        """The held-out rows in the same columns; None when none are held out."""
        return self._load("eval") if self.stats["eval"] else None

    def _load(self, split: str) -> "Dataset":
        from datasets import Dataset, concatenate_datasets

        return concatenate_datasets([Dataset.from_file(str(path)) for path in sorted(self.folder.glob(f"{split}-*"))])


def prepare(
    config: SFTConfig,
    model_path: Path,
    train_file: Path,
    cache_dir: Path,
    eval_file: Path | None = None,
    processes: int | None = None,
    on_rows: Callable[[int], None] = lambda rows: None,
) -> PreparedData:
    """Tokenize a data file for training, or return the cached folder for the same content.

    Held-out rows are those of `eval_file`, else a share `validation_split` of the rows, chosen by a hash of each row,
    so that no row changes its split when rows are added. Reads the model's tokenizer, not its weights. A call that was
    stopped or killed is gone on with by the next one.

    Args:
        processes: that tokenize, forked from this one; as many as cores if unset. The result is the same.
        on_rows: called with the number of rows that are done.

    Raises:
        InvalidDataset: a file can't be read, no row can be learned from, or a row is one that the configuration makes
            an error.
        TemplateNotFound: the template is unknown or does not suit the tokenizer.
    """
    check_template_name(config.template_name)
    key_parts = describe_preparation(config, model_path, train_file, eval_file)
    train, held_out = RowSource(train_file, partial(read_blocks, train_file)), None
    if eval_file:
        held_out = RowSource(eval_file, partial(read_blocks, eval_file))
    if processes is None:
        parts = list_parts(train_file) + (list_parts(eval_file) if eval_file else [])
        processes = _choose_processes(sum(part.stat().st_size for part in parts))
    write = partial(_write_splits, config, model_path, train, held_out, processes, on_rows)
    return _prepare(cache_dir, key_parts, write)


def prepare_sample(
    config: SFTConfig, model_path: Path, train_file: Path, cache_dir: Path, eval_file: Path | None, rows: int
) -> PreparedData:
    """`prepare` a sample of large files, in a time that hardly grows with them; its `sample` says how much it is.

    Args:
        rows: number of rows in the training file.
    """
    check_template_name(config.template_name)
    files = [train_file, eval_file] if eval_file else [train_file]
    blocks = [sample_blocks(read_blocks(file)) for file in files]
    contents = [hashlib.sha256(repr(found).encode()).hexdigest() for found in blocks]
    key_parts = describe_tokens(config, model_path) | {"sample": contents, "rows": rows}
    sources = [RowSource(file, partial(iter, found)) for file, found in zip(files, blocks, strict=True)]
    counts = [sum(block.count_rows() for block in found) for found in blocks]
    sample = {"rows": counts[0], "of": rows, "eval_rows": 0, "eval_of": 0}
    if eval_file:
        sample |= {"eval_rows": counts[1], "eval_of": count_rows(eval_file)}
    held_out = sources[1] if eval_file else None
    write = partial(_write_splits, config, model_path, sources[0], held_out, 1, lambda done: None)
    return _prepare(cache_dir, key_parts, write, sample)


def _prepare(
    cache_dir: Path,
    key_parts: dict[str, Any],
    write: Callable[[Path], dict[str, Any]],
    sample: dict[str, int] | None = None,
) -> PreparedData:
    """The cached folder of this key; `write` writes its Arrow files and returns their part of the manifest."""
    key = digest(key_parts)
    folder = cache_dir / key[:32]
    if _is_complete(folder):
        return PreparedData(folder, was_cached=True)
    with lock_shards(folder) as shards:
        if _is_complete(folder):  # another process has made it
            return PreparedData(folder, was_cached=True)
        if folder.exists():
            discard_folder(folder)
        report = write(shards)
        with publish_folder(folder, replace=False) as temporary:
            for path in shards.glob("*.arrow"):
                path.rename(temporary / path.name)
            files = {path.name: path.stat().st_size for path in temporary.iterdir()}
            manifest = {"key": key, "made_from": key_parts, "sample": sample, **report, "files": files}
            (temporary / "manifest.json").write_text(json.dumps(manifest, indent=2), encoding="utf-8")
    return PreparedData(folder, was_cached=False)


def _choose_processes(size_bytes: int) -> int:
    if size_bytes < PARALLEL_BYTES:
        return 1
    memory = find_memory_limit()
    return count_cores() if memory is None else max(1, min(count_cores(), memory // PROCESS_BYTES))


def place_of_prepared(
    config: SFTConfig, model_path: Path, train_file: Path, cache_dir: Path, eval_file: Path | None = None
) -> Path:
    """The folder that `prepare` returns for these, which need not exist; named alike on every machine."""
    return cache_dir / digest(describe_preparation(config, model_path, train_file, eval_file))[:32]


def _write_splits(
    config: SFTConfig,
    model_path: Path,
    train: RowSource,
    held_out: RowSource | None,
    processes: int,
    on_rows: Callable[[int], None],
    folder: Path,
) -> dict[str, Any]:
    """Write the Arrow files; returns their part of the manifest."""
    from sft.models.loading import load_tokenizer

    size = sum(path.stat().st_size for path in find_tokenizer_files(model_path))
    with step(f"base_model {config.base_model}: to load its tokenizer", size):
        tokenizer = load_tokenizer(model_path)
    encoder = BlockEncoder(config, tokenizer)
    reports = write_shards(config, encoder, train, held_out, folder, processes, on_rows)
    needed = {"train": train} | ({"eval": held_out} if held_out else {})
    for name in SPLITS.values():
        reports[name].check_lengths(config)
        if name in needed and not reports[name].counts["used"]:
            why = reports[name].explain_emptiness(config)
            raise InvalidDataset(f"nothing to learn from in {needed[name].file}: {why}")
    return {
        "stats": {name: report.counts if report.counts["used"] else None for name, report in reports.items()},
        "notes": {name: report.notes for name, report in reports.items()},
        "reasons": {name: list(report.reasons.values()) for name, report in reports.items()},
        "ignored": dict(sum((report.ignored for report in reports.values()), Counter[str]())),
        "longest": {name: report.longest for name, report in reports.items()},
        "largest_ids": {name: report.largest_id for name, report in reports.items()},
        "advice": list(advise_on_rows(config, reports)),
    }


def _is_complete(folder: Path) -> bool:
    """Whether the folder holds every file its manifest lists, in full."""
    try:
        files = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError):
        return False
    return bool(files) and has_files(folder, files)
