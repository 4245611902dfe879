"""A data file as token ids and labels in a folder of Arrow files, made once for the same content."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft.config import SFTConfig
from sft.errors import InvalidDataset
from sft.formats import Conversation, read_row, read_rows
from sft.publication import discard_folder, publish_folder, sync_tree
from sft.splits import NumberedRow, split_rows
from sft.supervision import SupervisedText, render_row
from sft.templates import TEMPLATES, apply_template, check_template_name

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

FORMAT_VERSION = 1  # raise it whenever the same input would give other tokens or labels
IGNORED = -100  # label of a token that is read but not learned
BATCH_ROWS = 512
TOKENIZER_FILES = ("*token*.json", "vocab*", "merges.txt", "*.model", "chat_template*", "config.json")


class PreparedData:
    """A folder with `train.arrow`, perhaps `eval.arrow`, and `manifest.json`.

    `stats["train"]` and `stats["eval"]` (None without held-out rows) count `rows, used, dropped` (no supervised
    token), `truncated, tokens, supervised_tokens`. `was_cached` says whether an earlier call had made the folder.
    """

    def __init__(self, folder: Path, was_cached: bool) -> None:
        self.folder = folder
        self.was_cached = was_cached
        self.manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        self.stats: dict[str, dict[str, int] | None] = self.manifest["stats"]

    def load_train(self) -> "Dataset":
        """Rows of `input_ids`, `labels` (-100 where not learned) and `length`."""
        from datasets import Dataset

        return Dataset.from_file(str(self.folder / "train.arrow"))

    def load_eval(self) -> "Dataset | None":
        """The held-out rows, as `load_train` gives them; None when none are held out."""
        from datasets import Dataset

        return Dataset.from_file(str(self.folder / "eval.arrow")) if self.stats["eval"] else None


def prepare(
    config: SFTConfig, model_path: Path, train_file: Path, cache_dir: Path, eval_file: Path | None = None
) -> PreparedData:
    """Tokenize a data file for training, or find what an earlier call made of the same content.

    Held-out rows are those of `eval_file`, else a share `validation_split` of the rows, chosen by a hash of each
    row so that none changes sides when rows are added. Reads the model's tokenizer, not its weights.

    Raises:
        InvalidDataset: rows that can't be read, or nothing to learn from.
        TemplateNotFound: the template is unknown or does not suit the tokenizer.
    """
    check_template_name(config.template_name)
    key_parts = _describe(config, model_path, train_file, eval_file)
    key = hashlib.sha256(json.dumps(key_parts, sort_keys=True).encode()).hexdigest()
    folder = cache_dir / key[:32]
    if _is_complete(folder):
        return PreparedData(folder, was_cached=True)
    if folder.exists():
        discard_folder(folder)
    with publish_folder(folder, replace=False) as temporary:
        stats = _write_splits(config, model_path, train_file, eval_file, temporary)
        files = {path.name: path.stat().st_size for path in temporary.iterdir()}
        sync_tree(temporary)
        manifest = {"key": key, "made_from": key_parts, "stats": stats, "files": files}
        (temporary / "manifest.json").write_text(json.dumps(manifest, indent=2), encoding="utf-8")
    return PreparedData(folder, was_cached=False)


def encode(tokenizer: "PreTrainedTokenizerBase", texts: list[SupervisedText]) -> Iterator[tuple[list[int], list[int]]]:
    """Token ids of each text and their labels: the id where the token touches a supervised span, else -100."""
    encoded = tokenizer(
        [item.text for item in texts],
        add_special_tokens=False,
        return_offsets_mapping=True,
        return_attention_mask=False,
        verbose=False,
    )
    for item, ids, offsets in zip(texts, encoded["input_ids"], encoded["offset_mapping"], strict=True):
        labels = [IGNORED] * len(ids)
        spans = iter(item.spans)
        span = next(spans, None)
        for position, (start, end) in enumerate(offsets):
            while span and start >= span[1]:
                span = next(spans, None)
            if span and end > span[0]:
                labels[position] = ids[position]
        yield ids, labels


def _write_splits(
    config: SFTConfig, model_path: Path, train_file: Path, eval_file: Path | None, folder: Path
) -> dict[str, dict[str, int] | None]:
    from sft.models import load_tokenizer

    tokenizer = load_tokenizer(model_path)
    share = 0.0 if eval_file else config.validation_split
    train_rows, eval_rows = split_rows(read_rows(train_file), share, config.max_samples, config.seed)
    if eval_file:
        eval_rows, _ = split_rows(read_rows(eval_file), 0.0, config.max_samples, config.seed)
    stats: dict[str, dict[str, int] | None] = {"train": None, "eval": None}
    for name, rows in (("train", train_rows), ("eval", eval_rows)):
        if not rows:
            continue
        counts = _write_split(config, tokenizer, rows, folder / f"{name}.arrow")
        if counts["used"]:
            stats[name] = counts
        elif name == "train" or eval_file:
            raise InvalidDataset(
                f"nothing to learn from in {(eval_file if name == 'eval' else train_file) or name}: no row of "
                f"{len(rows)} has an answer within max_seq_length {config.max_seq_length}"
            )
        else:
            (folder / "eval.arrow").unlink()
    return stats


def _write_split(
    config: SFTConfig, tokenizer: "PreTrainedTokenizerBase", rows: list[NumberedRow], path: Path
) -> dict[str, int]:
    """Write the rows that have something to learn; the first token is never predicted, so it does not count."""
    import pyarrow as pa

    ids_type = pa.list_(pa.int32())
    schema = pa.schema([("input_ids", ids_type), ("labels", ids_type), ("length", pa.int32())])
    counts = Counter({"rows": len(rows), "used": 0, "dropped": 0, "truncated": 0, "tokens": 0, "supervised_tokens": 0})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        for start in range(0, len(rows), BATCH_ROWS):
            texts = list(_render_rows(config, tokenizer, rows[start : start + BATCH_ROWS]))
            kept: list[tuple[list[int], list[int]]] = []
            for all_ids, all_labels in encode(tokenizer, texts):
                ids, labels = all_ids[: config.max_seq_length], all_labels[: config.max_seq_length]
                counts["truncated"] += len(all_ids) > len(ids)
                supervised = sum(label != IGNORED for label in labels[1:])
                if supervised == 0:
                    counts["dropped"] += 1
                    continue
                kept.append((ids, labels))
                counts.update(used=1, tokens=len(ids), supervised_tokens=supervised)
            if kept:
                columns = [[ids for ids, _ in kept], [labels for _, labels in kept], [len(ids) for ids, _ in kept]]
                writer.write_batch(
                    pa.record_batch([pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)], schema)
                )
    return dict(counts)


def _render_rows(
    config: SFTConfig, tokenizer: "PreTrainedTokenizerBase", rows: list[NumberedRow]
) -> Iterator[SupervisedText]:
    stop_tokens: dict[bool, str] = {}  # by whether a template is needed
    for number, values in rows:
        row = read_row(values, number, config.dataset_format, config.dataset_text_field)
        needed = isinstance(row, Conversation)
        if needed not in stop_tokens:
            stop_tokens[needed] = apply_template(tokenizer, config.template_name, required=needed)
        try:
            yield render_row(tokenizer, stop_tokens[needed], row)
        except InvalidDataset as error:
            raise InvalidDataset(f"row {number}: {error}") from error


def _is_complete(folder: Path) -> bool:
    """Whether the folder holds every file its manifest lists, in full."""
    try:
        files = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["files"]
        return all((folder / name).stat().st_size == size for name, size in files.items())
    except (OSError, ValueError, KeyError):
        return False


def _describe(config: SFTConfig, model_path: Path, train_file: Path, eval_file: Path | None) -> dict[str, Any]:
    """Everything the tokens and labels depend on."""
    files = sorted({path for pattern in TOKENIZER_FILES for path in model_path.glob(pattern) if path.is_file()})
    template = TEMPLATES.get(config.template_name)
    fields = {"dataset_format", "dataset_text_field", "max_samples", "validation_split", "max_seq_length", "seed"}
    return {
        "format_version": FORMAT_VERSION,
        "train": [train_file.suffix.lower(), hash_file(train_file)],
        "eval": [eval_file.suffix.lower(), hash_file(eval_file)] if eval_file else None,
        "tokenizer": {path.name: hash_file(path) for path in files},
        "template": [config.template_name, *(template or [])],
        **config.model_dump(mode="json", include=fields),
    }


def hash_file(path: Path) -> str:
    """SHA-256 of a file's content, in hex. Raises InvalidDataset when there is no such file."""
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except FileNotFoundError as error:
        raise InvalidDataset(f"{path} is not a file") from error
