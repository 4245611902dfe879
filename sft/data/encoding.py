"""Renders and tokenizes rows into an Arrow file of token ids and labels, and counts what became of each row."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from sft.chat.templates import apply_template
from sft.config import SFTConfig
from sft.confinement import step
from sft.data.data_files import BrokenRow, NumberedRow
from sft.data.formats import Conversation, read_row
from sft.data.row_report import SplitReport, clean_reason
from sft.data.supervision import Renderer, SupervisedText
from sft.errors import InvalidDataset
from sft.models.weights import raising_unusable

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100  # label of a token that does not contribute to the loss (cross_entropy's ignore_index)
BATCH_ROWS = 512


def write_split(
    config: SFTConfig, tokenizer: "PreTrainedTokenizerBase", rows: list[NumberedRow], path: Path
) -> SplitReport:
    """Write the rows that have a supervised token; the first token does not count, as it is never predicted.

    Raises:
        InvalidDataset: a row can't be read or is too long, and the configuration makes that an error.
        TemplateNotFound: the template does not suit the tokenizer.
    """
    import pyarrow as pa

    ids_type = pa.list_(pa.int32())
    schema = pa.schema([("input_ids", ids_type), ("labels", ids_type), ("length", pa.int32()), ("row", pa.int32())])
    report = SplitReport(len(rows))
    renderers: dict[bool, Renderer] = {}
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        for start in range(0, len(rows), BATCH_ROWS):
            texts = list(_render_rows(config, tokenizer, rows[start : start + BATCH_ROWS], report, renderers))
            kept = list(_encode_rows(config, tokenizer, texts, report))
            if kept:
                columns = zip(zip(*kept, strict=True), schema, strict=True)
                writer.write_batch(pa.record_batch([pa.array(values, f.type) for values, f in columns], schema))
    if report.counts["too_long"] and config.excess_length_strategy == "error":
        numbers = ", ".join(map(str, report.notes["too_long"][:5]))
        raise InvalidDataset(
            f"{report.counts['too_long']} rows are longer than max_seq_length {config.max_seq_length} (row {numbers}); "
            "raise it, or set excess_length_strategy to truncate or drop"
        )
    return report


def encode(tokenizer: "PreTrainedTokenizerBase", texts: list[SupervisedText]) -> Iterator[tuple[list[int], list[int]]]:
    """Yield token ids and labels of each text: a label is the id if the token overlaps a supervised span, else -100.

    Tokens are matched to spans by the tokenizer's character offsets; both are in order, so one pass suffices.
    """
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


def _encode_rows(
    config: SFTConfig,
    tokenizer: "PreTrainedTokenizerBase",
    texts: list[tuple[int, SupervisedText]],
    report: SplitReport,
) -> Iterator[tuple[list[int], list[int], int, int]]:
    """Yield ids, labels, length and number of every row that is used."""
    if not texts:
        return
    limit = config.max_seq_length
    first, last, size = texts[0][0], texts[-1][0], sum(len(text.text) for _, text in texts)
    what = f"base_model {config.base_model}: its tokenizer on the rows {first} to {last}"
    with step(what, size), raising_unusable(what):
        encoded = list(encode(tokenizer, [text for _, text in texts]))
    for (number, text), (ids, labels) in zip(texts, encoded, strict=True):
        report.note_text(text)
        if len(ids) > limit and config.excess_length_strategy != "truncate":
            report.note("too_long", number)
            continue
        if len(ids) > limit:
            report.note("truncated", number)
            ids, labels = ids[:limit], labels[:limit]
        supervised = sum(label != IGNORED for label in labels[1:])  # position t is predicted from those before it
        if not supervised:
            report.note("dropped", number)
            continue
        report.counts["used"] += 1
        report.counts["tokens"] += len(ids)
        report.counts["supervised_tokens"] += supervised
        yield ids, labels, len(ids), number


def _render_rows(
    config: SFTConfig,
    tokenizer: "PreTrainedTokenizerBase",
    rows: list[NumberedRow],
    report: SplitReport,
    renderers: dict[bool, Renderer],
) -> Iterator[tuple[int, SupervisedText]]:
    for number, values in rows:
        try:
            if isinstance(values, BrokenRow):
                raise InvalidDataset(values.reason)
            row = read_row(values, config.dataset_format, config.dataset_text_field)
            needs_template = isinstance(row, Conversation)
            with step(f"template_name {config.template_name}: to write row {number} by the chat template"):
                if needs_template not in renderers:
                    stop_token = apply_template(tokenizer, config.template_name, required=needs_template)
                    masks = (config.train_on_prompt, config.mask_history)
                    renderers[needs_template] = Renderer(tokenizer, stop_token, *masks, report.varying)
                rendered = renderers[needs_template].render(row)
            yield number, rendered
        except InvalidDataset as error:
            if config.invalid_rows == "error":
                raise InvalidDataset(f"row {number}: {clean_reason(str(error))}") from error
            report.note("invalid", number, str(error))
