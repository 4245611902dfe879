"""Tokenizes a data file into a folder of Arrow files with token ids and labels, cached by content."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft.chat.named_templates import TEMPLATES
from sft.chat.steady import VARYING
from sft.chat.templates import check_template_name
from sft.config import SFTConfig
from sft.confinement import step
from sft.data.data_files import read_rows
from sft.data.encoding import write_split
from sft.data.row_report import Notes, SplitReport
from sft.data.splits import split_rows
from sft.errors import InvalidDataset
from sft.files.publication import discard_folder, publish_folder, sync_tree

if TYPE_CHECKING:
    from datasets import Dataset

FORMAT_VERSION = 3  # of the folder's files
CODE = ("data/*.py", "chat/*.py", "models/tokenizer_class.py")  # code that the tokens depend on; part of the key
LIBRARIES = ("jinja2", "tokenizers", "transformers")
TOKENIZER_FILES = (
    "*token*.json",
    "tekken.json",
    "vocab*",
    "merges.txt",
    "*.model",
    "chat_template*",
    "config.json",
    "additional_chat_templates/*.jinja",  # named templates beside the default one, for tools for instance
)


class PreparedData:
    """A folder with `train.arrow`, perhaps `eval.arrow`, and `manifest.json`.

    Attributes:
        stats: counts of `SplitReport` by split (`train`, `eval`; None without held-out rows).
        notes: row numbers by split: `invalid` as pairs with the reason, `dropped`, `too_long`, `truncated`; the
            first 100 of each.
        reasons: by split, why rows can't be read: `reason`, `count` and the first `rows`.
        ignored: fields of rows and messages that have a value and are not used, with the number of rows.
        advice: what a user should know about these rows: pairs of a stable code and a sentence.
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

    def load_train(self) -> "Dataset":
        """Rows of `input_ids`, `labels` (-100: not supervised), `length` and `row`, the number in the file from 1."""
        from datasets import Dataset

        return Dataset.from_file(str(self.folder / "train.arrow"))

    def load_eval(self) -> "Dataset | None":
        """The held-out rows in the same columns; None when none are held out."""
        from datasets import Dataset

        return Dataset.from_file(str(self.folder / "eval.arrow")) if self.stats["eval"] else None


def prepare(
    config: SFTConfig, model_path: Path, train_file: Path, cache_dir: Path, eval_file: Path | None = None
) -> PreparedData:
    """Tokenize a data file for training, or return the cached folder for the same content.

    Held-out rows are those of `eval_file`, else a share `validation_split` of the rows, chosen by a hash of each row,
    so that no row changes its split when rows are added. Reads the model's tokenizer, not its weights.

    Raises:
        InvalidDataset: a file can't be read, no row can be learned from, or a row is one that the configuration makes
            an error.
        TemplateNotFound: the template is unknown or does not suit the tokenizer.
    """
    check_template_name(config.template_name)
    key_parts = _describe(config, model_path, train_file, eval_file)
    key = _digest(key_parts)
    folder = cache_dir / key[:32]
    if _is_complete(folder):
        return PreparedData(folder, was_cached=True)
    if folder.exists():
        discard_folder(folder)
    with publish_folder(folder, replace=False) as temporary:
        report = _write_splits(config, model_path, train_file, eval_file, temporary)
        files = {path.name: path.stat().st_size for path in temporary.iterdir()}
        sync_tree(temporary)
        manifest = {"key": key, "made_from": key_parts, **report, "files": files}
        (temporary / "manifest.json").write_text(json.dumps(manifest, indent=2), encoding="utf-8")
    return PreparedData(folder, was_cached=False)


def place_of_prepared(
    config: SFTConfig, model_path: Path, train_file: Path, cache_dir: Path, eval_file: Path | None = None
) -> Path:
    """The folder that `prepare` returns for these, which need not exist; named alike on every machine."""
    return cache_dir / _digest(_describe(config, model_path, train_file, eval_file))[:32]


def _digest(key_parts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(key_parts, sort_keys=True).encode()).hexdigest()


def _write_splits(
    config: SFTConfig, model_path: Path, train_file: Path, eval_file: Path | None, folder: Path
) -> dict[str, Any]:
    """Write the Arrow files; returns their part of the manifest."""
    from sft.models.loading import load_tokenizer

    size = sum(path.stat().st_size for path in find_tokenizer_files(model_path))
    with step(f"base_model {config.base_model}: to load its tokenizer", size):
        tokenizer = load_tokenizer(model_path)
    share = 0.0 if eval_file else config.validation_split
    train_rows, eval_rows = split_rows(read_rows(train_file), share, config.max_samples, config.seed)
    if eval_file:
        eval_rows, _ = split_rows(read_rows(eval_file), 0.0, config.max_samples, config.seed)
    reports = {}
    for name, rows, is_needed in (("train", train_rows, True), ("eval", eval_rows, eval_file is not None)):
        path = folder / f"{name}.arrow"
        reports[name] = write_split(config, tokenizer, rows, path)
        if is_needed and not reports[name].counts["used"]:
            file = eval_file if name == "eval" else train_file
            raise InvalidDataset(f"nothing to learn from in {file}: {reports[name].explain_emptiness(config)}")
        if not reports[name].counts["used"]:
            path.unlink()
    return {
        "stats": {name: report.counts if report.counts["used"] else None for name, report in reports.items()},
        "notes": {name: report.notes for name, report in reports.items()},
        "reasons": {name: list(report.reasons.values()) for name, report in reports.items()},
        "ignored": dict(sum((report.ignored for report in reports.values()), Counter[str]())),
        "advice": list(_advise(config, reports)),
    }


def _advise(config: SFTConfig, reports: dict[str, SplitReport]) -> Iterator[tuple[str, str]]:
    for name, report in reports.items():
        if report.counts["used"] and (skipped := count_skipped(report.counts)):
            what = f"{skipped} of {report.counts['rows']} {'held-out ' if name == 'eval' else ''}rows are skipped"
            yield "rows_skipped", f"{what}: {', '.join(report.list_skipped(config))}"
    if ignored := sum((report.ignored for report in reports.values()), Counter[str]()):
        fields = ", ".join(f"{field} ({rows} rows)" for field, rows in ignored.most_common())
        yield "ignored_fields", f"fields that are not used: {fields}"
    if empty := sum(report.empty for report in reports.values()):
        yield "empty_answers", f"{empty} answers have no text: the model learns to end the turn at once"
    if rewritten := sum(report.rewritten for report in reports.values()):
        yield (
            "template",
            f"{rewritten} answers are not trained on: the chat template writes them differently once the conversation "
            "continues (it removes their reasoning, say), or does not show where a first one begins; "
            "a named template_name, such as qwen3, keeps them",
        )
    for part in sorted(set().union(*(report.varying for report in reports.values()))):
        yield f"template_{part}", VARYING[part]
    unused = reports["eval"].counts
    if unused["rows"] and not unused["used"]:
        what = f"none of the {unused['rows']} rows held out for evaluation can be used"
        yield "no_eval_rows", f"{what}, so there is no eval_loss"


def count_skipped(counts: dict[str, int]) -> int:
    """Rows of a split that are not used."""
    return sum(counts[name] for name in ("dropped", "invalid", "too_long"))


def _is_complete(folder: Path) -> bool:
    """Whether the folder holds every file its manifest lists, in full."""
    try:
        files = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["files"]
        return all((folder / name).stat().st_size == size for name, size in files.items())
    except (OSError, ValueError, KeyError):
        return False


def _describe(config: SFTConfig, model_path: Path, train_file: Path, eval_file: Path | None) -> dict[str, Any]:
    """The parts of the cache key: everything that tokens and labels depend on."""
    files = find_tokenizer_files(model_path)
    template = TEMPLATES.get(config.template_name)
    fields = {
        "dataset_format",
        "dataset_text_field",
        "max_samples",
        "validation_split",
        "max_seq_length",
        "excess_length_strategy",
        "invalid_rows",
        "train_on_prompt",
        "mask_history",
        "seed",
    }
    return {
        "format_version": FORMAT_VERSION,
        "code": _hash_code(),
        "libraries": {name: version(name) for name in LIBRARIES},
        "train": [train_file.suffix.lower(), hash_file(train_file)],
        "eval": [eval_file.suffix.lower(), hash_file(eval_file)] if eval_file else None,
        "tokenizer": {path.relative_to(model_path).as_posix(): hash_file(path) for path in files},
        "template": [config.template_name, *((template.jinja, *template) if template else ())],
        **config.model_dump(mode="json", include=fields),
    }


def _hash_code() -> dict[str, str]:
    library = Path(__file__).parents[1]
    files = sorted(file for pattern in CODE for file in library.glob(pattern))
    return {file.relative_to(library).as_posix(): hash_file(file) for file in files}


def find_tokenizer_files(model_path: Path) -> list[Path]:
    """The files in a model's folder that its tokenizer and chat template may be read from."""
    return sorted({path for pattern in TOKENIZER_FILES for path in model_path.glob(pattern) if path.is_file()})


def hash_file(path: Path) -> str:
    """SHA-256 of a file's content, in hex. Raises InvalidDataset when there is no such file."""
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except FileNotFoundError as error:
        raise InvalidDataset(f"{path} is not a file") from error
