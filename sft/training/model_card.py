"""Writes a result's model card (README.md): what it is, how it was trained, and how to load it."""

from pathlib import Path
from typing import Any, NamedTuple

import yaml

from sft.config import SFTConfig

CARD_CHARACTERS = 100_000  # read of a base model's card; its metadata is at the top
MEASURES = {  # name in a result: name in the card
    "train_loss": "mean training loss",
    "base_eval_loss": "held-out loss of the base model",
    "eval_loss": "held-out loss of the result",
    "steps": "optimizer steps",
    "tokens": "tokens processed in training",
}


class Provenance(NamedTuple):
    """Facts for the card that the session does not know; None if unknown."""

    dataset: str | None = None  # with its revision
    dataset_commit: str | None = None
    dataset_md5: str | None = None
    hub_dataset: str | None = None  # its id, if it is from the Hub
    measures: dict[str, float] | None = None  # keys of MEASURES


def name_base(base_model: str) -> str:
    """The base model's public name: a Hub id unchanged, of a local path only the folder's name."""
    is_path = base_model.startswith(("/", "~", "."))
    return Path(base_model).name if is_path else base_model.strip("/")


def write_card(
    folder: Path,
    kind: str,
    config: SFTConfig,
    model_path: Path,
    facts: dict[str, Any],
    provenance: Provenance,
) -> None:
    """Write README.md with metadata for the Hub.

    Args:
        kind: `adapter`, `merged` or `full`.
        model_path: folder of the base model, for its licence.
        facts: the run's `rows`, `dtype`, and the session's `adaptation`.
    """
    base = name_base(config.base_model)
    license_fields = read_license(model_path)
    metadata = _build_metadata(kind, base, license_fields, provenance, config)
    header = yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)
    body = "\n\n".join(_write_sections(kind, base, config, license_fields, facts, provenance))
    (folder / "README.md").write_text(f"---\n{header}---\n\n{body}\n", encoding="utf-8")


def read_license(model_path: Path) -> dict[str, str]:
    """Read `license`, `license_name` and `license_link` from the base model's card; empty without one."""
    try:
        with (model_path / "README.md").open(encoding="utf-8") as file:
            text = file.read(CARD_CHARACTERS)
        found = yaml.safe_load(text.split("---", 2)[1]) if text.startswith("---") else {}
    except (OSError, ValueError, IndexError, RecursionError, yaml.YAMLError):
        return {}
    names = ("license", "license_name", "license_link")
    return {name: found[name] for name in names if isinstance(found, dict) and isinstance(found.get(name), str)}


def is_hub_id(name: str) -> bool:
    """Whether this is a valid id of a Hub repository."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def _build_metadata(
    kind: str, base: str, license_fields: dict[str, str], provenance: Provenance, config: SFTConfig
) -> dict[str, Any]:
    relation = {"adapter": "adapter", "merged": "merge", "full": "finetune"}[kind]
    method = ["lora"] if config.use_lora else []
    metadata: dict[str, Any] = {}
    if is_hub_id(base):
        metadata |= {"base_model": base, "base_model_relation": relation}
    metadata |= license_fields
    metadata |= {
        "library_name": "peft" if kind == "adapter" else "transformers",
        "pipeline_tag": "text-generation",
        "tags": [*method, "sft", "trl", "tuneyard"],
    }
    if provenance.hub_dataset and is_hub_id(provenance.hub_dataset):
        metadata["datasets"] = [provenance.hub_dataset]
    return metadata


def _write_sections(
    kind: str,
    base: str,
    config: SFTConfig,
    license_fields: dict[str, str],
    facts: dict[str, Any],
    provenance: Provenance,
) -> list[str]:
    what = {
        "adapter": f"A LoRA adapter for `{base}`",
        "merged": f"`{base}` with a LoRA adapter merged into its weights",
        "full": f"`{base}` with all of its weights trained further",
    }[kind]
    return [
        f"# {config.run_name or f'{Path(base).name}, fine-tuned'}",
        f"{what}, made by supervised fine-tuning with Tuneyard.",
        "## Data\n\n" + _write_table(_list_data(config, facts, provenance)),
        "## Training\n\n" + _write_table(_list_method(config, facts)),
        "## Results\n\n" + _write_results(provenance.measures or {}),
        "## Use\n\n" + _write_use(kind, base),
        "## Licence\n\n" + _write_license(base, license_fields),
    ]


def _list_data(config: SFTConfig, facts: dict[str, Any], provenance: Provenance) -> dict[str, Any]:
    name = provenance.dataset or config.dataset_names
    return {
        "dataset": f"`{Path(name).name if name.startswith('/') else name}`",
        "commit": provenance.dataset_commit and f"`{provenance.dataset_commit}`",
        "MD5": provenance.dataset_md5 and f"`{provenance.dataset_md5}`",
        "training rows": facts.get("rows"),
        "format": config.dataset_format,
        "chat template": config.template_name,
        "longest row in tokens": config.max_seq_length,
    }


def _list_method(config: SFTConfig, facts: dict[str, Any]) -> dict[str, Any]:
    adaptation = facts.get("adaptation") or {}
    trained = adaptation.get("trainable_parameters")
    share = f"{trained:,} of {adaptation['parameters']:,}" if trained else None
    lora: dict[str, Any] = {}
    if config.use_lora:
        kinds = {"QLoRA": config.use_qlora, "DoRA": config.use_dora, "rsLoRA": config.use_rslora}
        lora = {
            "method": ", ".join(name for name, is_used in kinds.items() if is_used) or "LoRA",
            "rank": config.lora_r,
            "alpha": config.lora_alpha,
            "dropout": config.lora_dropout,
            "adapted layers": ", ".join(f"`{name}`" for name in adaptation.get("modules", {})) or None,
        }
    return {
        **(lora or {"method": "full fine-tuning"}),
        "trained weights": share,
        "epochs": None if config.max_steps else config.num_epochs,
        "maximum steps": config.max_steps,
        "rows per step": config.get_effective_batch_size(),
        "learning rate": f"{config.learning_rate:g}, {config.scheduler_type}, warmup {config.warmup_ratio:g}",
        "optimizer": config.optimizer_type,
        "weight decay": config.weight_decay,
        "gradient clipping": config.max_grad_norm,
        "packing": config.packing,
        "dtype": facts.get("dtype"),
        "seed": config.seed,
    }


def _write_results(measures: dict[str, float]) -> str:
    rows = {
        what: f"{measures[name]:,}" if isinstance(measures[name], int) else f"{measures[name]:.4f}"
        for name, what in MEASURES.items()
        if measures.get(name) is not None
    }
    if not rows:
        return "Not measured."
    return _write_table(rows) + "\n\nLosses are the mean negative log-likelihood per supervised token, in nats."


def _write_use(kind: str, base: str) -> str:
    if kind == "adapter":
        code = (
            "from peft import PeftModel\n"
            "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            f'base = AutoModelForCausalLM.from_pretrained("{base}")\n'
            'model = PeftModel.from_pretrained(base, "path/to/this/folder")\n'
        )
    else:
        code = (
            "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            'model = AutoModelForCausalLM.from_pretrained("path/to/this/folder")\n'
        )
    code += 'tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")\n'
    note = f"`{base}` is the base model's id, or the name of its folder; give the path where you have it.\n\n"
    return (note if kind == "adapter" else "") + f"```python\n{code}```"


def _write_license(base: str, license_fields: dict[str, str]) -> str:
    if not license_fields.get("license"):
        return f"The licence of `{base}` applies; its files here do not say which one it is."
    name = license_fields.get("license_name") or license_fields["license"]
    link = license_fields.get("license_link")
    where = f" ({link})" if link and link.startswith("http") else ""
    return f"`{base}` is under the licence `{name}`{where}, which applies to this too."


def _write_table(rows: dict[str, Any]) -> str:
    shown = [f"| {name} | {str(value).replace('|', '/')} |" for name, value in rows.items() if value is not None]
    return "\n".join(["| | |", "|---|---|", *shown])
