"""Writes Ollama's Modelfile (docs/modelfile.md of github.com/ollama/ollama)."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft.errors import ExportRefused
from sft.exporting.ollama_template import GoTemplate
from sft.models.model_texts import read_object

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

QUOTES = '"""'


def write_modelfile(
    path: Path, title: str, model: str, adapter: str | None, template: GoTemplate | None, parameters: dict[str, Any]
) -> None:
    """Write a Modelfile.

    Args:
        title: what it is, for its first line.
        model: file of the model, beside the Modelfile.
        adapter: file of the adapter there, if it is not merged into the model.
        template: None leaves it out, for Ollama to choose one.
        parameters: values by name; a list is written as one line each.
    """
    lines = [f"# {' '.join(title.split())}", f"FROM ./{model}"]
    if adapter:
        lines.append(f"ADAPTER ./{adapter}")
    if template is None:
        lines.append("# No TEMPLATE: none is known for this adapter's chat template (chat_template.jinja beside this).")
    else:
        if template.trims:
            lines.append("# The chat template removes spaces around messages, which Ollama can't: send none.")
        lines.append(f"TEMPLATE {_quote(template.text)}")
    for name, value in parameters.items():
        lines += [f"PARAMETER {name} {_format(one)}" for one in (value if isinstance(value, list) else [value])]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def choose_parameters(tokenizer: "PreTrainedTokenizerBase", folder: Path) -> dict[str, Any]:
    """Parameters with which Ollama generates as transformers does with the generation config in `folder`.

    `stop` has the tokens that end an answer. Ollama penalizes repetition unless told otherwise, transformers does not.
    """
    settings = read_object(folder / "generation_config.json")
    stops = settings.get("eos_token_id")
    ids = [tokenizer.eos_token_id, *(stops if isinstance(stops, list) else [stops])]
    known = len(tokenizer)
    numbers = [one for one in ids if isinstance(one, int) and 0 <= one < known]
    tokens = [str(token) for token in tokenizer.convert_ids_to_tokens(list(dict.fromkeys(numbers)))]
    penalty = settings.get("repetition_penalty")
    return {"stop": tokens, "repeat_penalty": penalty if isinstance(penalty, int | float) else 1}


def _quote(text: str) -> str:
    if QUOTES in text:
        raise ExportRefused("its template or tokens have three quotation marks in a row, which a Modelfile can't hold")
    return f"{QUOTES}{text}{QUOTES}"


def _format(value: Any) -> str:
    if not isinstance(value, str):
        return str(value)
    return _quote(value) if '"' in value or "\n" in value else f'"{value}"'
