"""The first rows of an added dataset, as they are and as a chat template writes them for a model."""

import json
from itertools import islice
from pathlib import Path
from typing import Any

from jobs.settings import Settings
from sft.chat.templates import AUTO, apply_template, check_template_name
from sft.confinement import step
from sft.data.formats import Conversation, read_row
from sft.data.row_blocks import read_file_blocks
from sft.data.rows import BrokenRow, NumberedRow
from sft.data.supervision import Renderer
from sft.errors import InvalidDataset
from tasks.limits import reading_input
from tasks.model_store import locate_model

MAX_BYTES = 2**16  # of a row's values, or its text; larger ones are named and not shown
MAX_DEPTH = 32


def show_rows(wanted: dict[str, Any], settings: Settings) -> list[dict[str, Any]]:
    """The first rows of a file.

    Args:
        wanted: `path` and `label` of the file, how many rows (`limit`), the `format`, and a base `model` with its
            `template`; without a model no row is rendered.

    Raises:
        InvalidDataset: the file can't be read.
        ModelNotFound, TemplateNotFound: naming the value.
    """
    path = Path(wanted["path"])
    with reading_input(settings, wanted["label"]):
        rows = list(islice((row for block in read_file_blocks(path) for row in block.read()), wanted["limit"]))
        if wanted["model"] is None:
            return [_show(row) for row in rows]
        write = _Writer(locate_model(wanted["model"], settings), wanted["model"], wanted["template"] or AUTO)
        return [_show(row, write, wanted["format"] or "auto") for row in rows]


class _Writer:
    """Renders rows for a model by a template; the tokenizer is loaded once."""

    def __init__(self, path: Path, model: str, template: str) -> None:
        from sft.models.loading import load_tokenizer

        check_template_name(template)
        self._template = template
        with step(f"model {model}: to load its tokenizer", 2**20):
            self._tokenizer = load_tokenizer(path)
        self._renderers: dict[bool, Renderer] = {}

    def __call__(self, values: dict[str, Any], number: int, dataset_format: str) -> list[dict[str, Any]]:
        row = read_row(values, dataset_format)
        needs_template = isinstance(row, Conversation)
        with step(f"template {self._template}: to write row {number} by the chat template"):
            if needs_template not in self._renderers:
                stop_token = apply_template(self._tokenizer, self._template, required=needs_template)
                self._renderers[needs_template] = Renderer(self._tokenizer, stop_token, False, False, set())
            text = self._renderers[needs_template].render(row)
        return [*_cut(text.text, text.spans)]


def _cut(text: str, spans: Any) -> Any:
    """The text in pieces, in turn not supervised and supervised."""
    at = 0
    for start, end in spans:
        if start > at:
            yield {"text": text[at:start], "supervised": False}
        yield {"text": text[start:end], "supervised": True}
        at = end
    if at < len(text):
        yield {"text": text[at:], "supervised": False}


def _show(row: NumberedRow, write: _Writer | None = None, dataset_format: str = "auto") -> dict[str, Any]:
    number, values = row
    shown: dict[str, Any] = {"row": number, "values": None, "problem": None, "rendered": None}
    if isinstance(values, BrokenRow):
        return shown | {"problem": values.reason[:500]}
    text = json.dumps(values, default=str, ensure_ascii=False).encode("utf-8", "replace")
    if len(text) > MAX_BYTES or _is_deep(values):
        return shown | {"problem": f"it has more than {MAX_BYTES} bytes or is nested deeply, and is not shown"}
    shown["values"] = json.loads(text, parse_constant=lambda _: None)
    if write is not None:
        try:
            rendered = write(values, number, dataset_format)
        except InvalidDataset as error:
            return shown | {"problem": str(error)[:500]}
        if len(json.dumps(rendered)) > 2 * MAX_BYTES:
            return shown | {"problem": f"its text has more than {2 * MAX_BYTES} bytes and is not shown"}
        shown["rendered"] = rendered
    return shown


def _is_deep(value: Any) -> bool:
    """Whether values are nested more than MAX_DEPTH deep, found without recursion."""
    left = [(value, 0)]
    while left:
        one, depth = left.pop()
        if depth > MAX_DEPTH:
            return True
        if isinstance(one, dict | list | tuple):
            left += [(inner, depth + 1) for inner in (one.values() if isinstance(one, dict) else one)]
    return False
