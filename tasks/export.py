"""Exports a registered adapter for other programs: PEFT, transformers, llama.cpp, Ollama, vLLM."""

import json
import re
import shlex
import shutil
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.settings import Settings
from sft.adapting.adapter_files import SETTINGS, WEIGHTS
from sft.errors import ExportRefused, ModelNotFound
from sft.files.disk import raising_disk_full, telling_full_disk
from sft.files.publication import publish_folder
from tasks.export_source import ExportSource, fetch, find_adapter

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from sft.exporting.ollama_template import GoTemplate

MANIFEST = "tuneyard-export.json"
EXPORTS = "exports"  # the only folder for them in the state folder
MODEL_FILES = ("config.json", SETTINGS)
PARTS = ".parts"  # what is left out of the export: downloads, links
OTHER_DISK = "name a folder on another disk"
NUMBER = re.compile(r"\d+(\.\d+)?(e-?\d+)?")
NO_TEMPLATE = "Ollama then chooses one, or none; write one before you use it"
QLORA = "the adapter was trained on a base model in 4 bits (QLoRA); this has the base model's own weights"


class Target(StrEnum):
    """What an adapter is exported for."""

    PEFT = "peft"
    MERGED = "merged"
    GGUF = "gguf"
    OLLAMA = "ollama"
    VLLM = "vllm"


@dataclass(frozen=True)
class Options:
    """How to export.

    Attributes:
        merged: merge the adapter into the model (gguf, ollama, vllm).
        outtype: number format of a GGUF model.
        llama_cpp: folder of llama.cpp's sources; None for the installed package.
        replace: replace an export that is in the folder.
    """

    merged: bool = False
    outtype: str = "auto"
    llama_cpp: Path | None = None
    replace: bool = False


@dataclass
class Exported:
    """What was written, and how to use it.

    Attributes:
        command: what to run next.
        notes: sentences about what differs from the training.
    """

    folder: str
    name: str
    version: str
    target: str
    base_model: str
    command: str = ""
    notes: list[str] = field(default_factory=list)


def export(settings: Settings, reference: str, target: Target, folder: Path, options: Options) -> Exported:
    """Export an adapter into a folder, which appears when it is complete.

    Raises:
        ExportRefused: the folder has other files or is in a place of the service's or a model's, or this adapter can't
            have this form.
        ModelNotFound: there is no such adapter, or its base model is not here.
        ModelUnusable: the adapter's files are damaged.
        MergeFailed, DiskFull, RegistryUnavailable.
    """
    folder = folder.absolute()
    try:
        check_folder(folder, options.replace)
        check_place(folder, settings)
    except OSError as error:  # a name that no file can have, or no right to look
        raise ExportRefused(f"{folder} can't be read ({error.strerror or error}); name another folder") from error
    adapter = find_adapter(settings, reference)
    with telling_full_disk(folder, OTHER_DISK), ExitStack() as stack:
        try:
            fresh = stack.enter_context(publish_folder(folder))
        except OSError as error:
            raise ExportRefused(f"{folder} can't be made ({error.strerror or error}); name another folder") from error
        parts = fresh / PARTS
        parts.mkdir()
        source = fetch(settings, adapter, parts)
        made = Exported(str(folder), adapter.name, adapter.version, target.value, source.base_model)
        write = {Target.PEFT: write_peft, Target.MERGED: write_merged, Target.VLLM: write_vllm}.get(target, write_gguf)
        write(source, fresh, options, made)
        if source.config and source.config.use_qlora and target is not Target.PEFT:
            made.notes.append(QLORA)
        shutil.rmtree(parts)
        manifest = asdict(made) | {"folder": folder.name, "files": _list_files(fresh)}
        (fresh / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    return made


def check_folder(folder: Path, replace: bool) -> None:
    """Raise ExportRefused unless the folder is new or empty, or holds an export to replace and nothing else."""
    if folder.is_symlink():
        raise ExportRefused(f"{folder} is a link; name the folder itself")
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not folder.is_dir() or not (folder / MANIFEST).is_file():
        raise ExportRefused(f"{folder} has other files than an export's; name a new or empty folder")
    if not replace:
        raise ExportRefused(f"{folder} has an export already; replace it by --force, or name another folder")
    if others := sorted({*_list_files(folder)} - {*_read_list(folder), MANIFEST}):
        raise ExportRefused(f"{folder} has files that are not of the export ({', '.join(others[:3])}); move them first")


def check_place(folder: Path, settings: Settings) -> None:
    """Raise ExportRefused for a folder among the service's files, or in that of a model or another export."""
    real = folder.resolve()
    home, mine = settings.home, settings.home / EXPORTS
    kept = {
        "the model root": settings.model_root,
        "the data root": settings.data_root,
        "the output root": settings.output_root,
        "the dataset registry": _find_registry(settings),
    }
    for name, place in kept.items():
        if place is not None and real.is_relative_to(place):
            raise ExportRefused(f"{folder} is in {name} {place}; name a folder elsewhere")
    if real.is_relative_to(home) and mine not in real.parents:
        raise ExportRefused(f"{folder} is in the state folder {home}; name a folder elsewhere, or below {mine}")
    for parent in real.parents:
        if any((parent / name).is_file() for name in MODEL_FILES) and any(parent.glob("*.safetensors")):
            raise ExportRefused(f"{folder} is in {parent}, which has a model; name a folder elsewhere")
        if (parent / MANIFEST).is_file():
            raise ExportRefused(f"{folder} is in {parent}, which has an export; name a folder elsewhere")


def _find_registry(settings: Settings) -> Path | None:
    named = settings.dataset_registry
    return None if named is None or "://" in named else Path(named).expanduser().resolve()


def _list_files(folder: Path) -> list[str]:
    found = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return sorted(path.relative_to(folder).as_posix() for path in found)


def _read_list(folder: Path) -> list[str]:
    """The files that an export wrote; none if its manifest does not tell."""
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        return [str(name) for name in files]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def write_peft(source: ExportSource, fresh: Path, options: Options, made: Exported) -> None:
    """Write the adapter's files as they are in the registry."""
    if not source.is_adapter:
        raise ExportRefused(f"{source.title} is a whole model (use_lora false), not an adapter; export --to merged")
    shutil.copytree(source.folder, fresh, dirs_exist_ok=True)
    made.command = f"PeftModel.from_pretrained(base_model, {_quote(made.folder)})"


def write_merged(source: ExportSource, fresh: Path, options: Options, made: Exported) -> None:
    """Write a whole model: the adapter merged into its base model, layer by layer (see `sft.adapting.merging`)."""
    made.command = f"AutoModelForCausalLM.from_pretrained({_quote(made.folder)})"
    _write_model(source, fresh)


def write_gguf(source: ExportSource, fresh: Path, options: Options, made: Exported) -> None:
    """Write GGUF files, and for Ollama a Modelfile."""
    from sft.exporting import gguf_conversion as gguf
    from sft.exporting.adapter_limits import check_for_llama_cpp
    from sft.exporting.ollama_template import choose_bos, find_go_template
    from sft.models.loading import load_tokenizer

    converter = gguf.find_converter(options.llama_cpp)
    is_apart = source.is_adapter and not options.merged
    if is_apart:
        check_for_llama_cpp(source.settings)
    tokenizer = load_tokenizer(source.folder)
    try:
        template = find_go_template(tokenizer)
    except ExportRefused as error:
        template = None
        if made.target == Target.OLLAMA:
            made.notes.append(f"the Modelfile has no TEMPLATE: {error}. {NO_TEMPLATE}")
    weights = source.find_base() if is_apart else _write_model(source, fresh / PARTS / "model")
    staged = fresh / PARTS / "staged"
    made.notes += gguf.stage(staged, weights, source.folder, choose_bos(tokenizer, template))
    size = sum(path.stat().st_size for path in weights.glob("*.safetensors"))
    with raising_disk_full(fresh, "the GGUF file", size, OTHER_DISK):
        gguf.convert_model(converter, staged, fresh / gguf.MODEL_FILE, source.name, options.outtype)
        if is_apart:
            gguf.convert_adapter(converter, source.folder, staged, fresh / gguf.ADAPTER_FILE)
    adapter = gguf.ADAPTER_FILE if is_apart else None
    if made.target == Target.OLLAMA:
        _write_modelfile(source, fresh, tokenizer, adapter, template)
        made.command = shlex.join(["ollama", "create", source.name, "-f", f"{made.folder}/Modelfile"])
        return
    lora = ["--lora", f"{made.folder}/{adapter}"] if adapter else []
    made.command = shlex.join(["llama-server", "--jinja", "-m", f"{made.folder}/{gguf.MODEL_FILE}", *lora])


def write_vllm(source: ExportSource, fresh: Path, options: Options, made: Exported) -> None:
    """Write the adapter or the merged model, and a script that serves it."""
    from sft.exporting.adapter_limits import check_for_vllm
    from sft.exporting.vllm_script import SCRIPT, build_command, write_script

    if source.is_adapter and not options.merged:
        rank = check_for_vllm(source.settings)
        shutil.copytree(source.folder, fresh / "adapter")
        try:
            base = str(source.find_base())
        except ModelNotFound as error:
            base = source.base_model
            made.notes.append(f"the base model is not on this machine, so the command has its name: {error}")
        command = build_command(source.name, base, "adapter", rank)
    else:
        _write_model(source, fresh / "model")
        command = build_command(source.name, None, "model", None)
    write_script(fresh / SCRIPT, source.title, command)
    made.command = shlex.join(["sh", f"{made.folder}/{SCRIPT}"])


def _quote(text: str) -> str:
    """A string as Python code."""
    return json.dumps(text, ensure_ascii=False)


def _write_modelfile(
    source: ExportSource,
    fresh: Path,
    tokenizer: "PreTrainedTokenizerBase",
    adapter: str | None,
    template: "GoTemplate | None",
) -> None:
    from sft.exporting.gguf_conversion import MODEL_FILE
    from sft.exporting.modelfile import choose_parameters, write_modelfile

    if tokenizer.chat_template:
        (fresh / "chat_template.jinja").write_text(str(tokenizer.chat_template), encoding="utf-8")
    parameters = choose_parameters(tokenizer, source.folder)
    write_modelfile(fresh / "Modelfile", source.title, MODEL_FILE, adapter, template, parameters)


def _write_model(source: ExportSource, folder: Path) -> Path:
    """Write a whole model into a folder; returns the folder."""
    folder.mkdir(exist_ok=True)
    if not source.is_adapter:
        shutil.copytree(source.folder, folder, dirs_exist_ok=True)
        return folder
    from sft.adapting.merging import plan_merge
    from sft.models.loading import quiet_transformers
    from sft.training.model_card import write_card

    base = source.find_base()
    with quiet_transformers():
        merge = plan_merge(base, source.folder, f"base_model {source.base_model}")
        with raising_disk_full(folder, "the merged model", merge.size, OTHER_DISK):
            merge.write(folder)
            for path in source.folder.iterdir():
                if path.is_file() and path.name not in (SETTINGS, WEIGHTS, "README.md"):
                    shutil.copy(path, folder / path.name)
    if source.config:
        write_card(folder, "merged", source.config, base, {}, _read_provenance(source.adapter.tags))
    return folder


def _read_provenance(tags: dict[str, str]) -> Any:
    """What the registry's tags tell of an adapter's data and results."""
    from sft.training.model_card import MEASURES, Provenance

    measures = {
        name: float(tags[name]) for name in MEASURES if re.fullmatch(r"\d+(\.\d+)?(e-?\d+)?", tags.get(name, ""))
    }
    dataset, revision = tags.get("dataset"), tags.get("dataset_revision")
    return Provenance(
        dataset=f"{dataset}@{revision}" if dataset and revision else dataset,
        dataset_commit=tags.get("dataset_commit") or None,
        dataset_md5=tags.get("dataset_md5") or None,
        measures=measures,
    )
