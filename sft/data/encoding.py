"""Renders and tokenizes blocks of rows into token ids and labels, and counts what became of each row."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sft.chat.templates import apply_template
from sft.config import SFTConfig
from sft.confinement import step
from sft.data.formats import Conversation, read_row
from sft.data.row_blocks import Block
from sft.data.row_report import SplitReport, clean_reason
from sft.data.rows import BrokenRow, NumberedRow, Row
from sft.data.splits import EVAL, TRAIN, UNUSED, Hashes, Sides, hash_rows
from sft.data.supervision import Renderer, SupervisedText
from sft.errors import InvalidDataset
from sft.models.weights import raising_unusable

if TYPE_CHECKING:
    import pyarrow as pa
    from transformers import PreTrainedTokenizerBase

IGNORED = -100  # label of a token that does not contribute to the loss (cross_entropy's ignore_index)
BATCH_ROWS = 512  # tokenized at once
SPLITS = {TRAIN: "train", EVAL: "eval"}
Ints = NDArray[np.int32]


class EncodedBlock(NamedTuple):
    """What a block's rows became: by split the tokens as a stream of Arrow's (None without any), and the report."""

    tables: dict[str, bytes | None]
    reports: dict[str, SplitReport]
    rows: int


class BlockEncoder:
    """Tokenizes blocks of rows; a row is used if it has a supervised token, other than its first, which is no target.

    Raises (when called):
        InvalidDataset: a row can't be read, and the configuration makes that an error.
        TemplateNotFound: the template does not suit the tokenizer.
    """

    def __init__(self, config: SFTConfig, tokenizer: "PreTrainedTokenizerBase") -> None:
        self.config = config
        self.tokenizer = tokenizer
        self._renderers: dict[bool, Renderer] = {}
        self._varying: set[str] = set()

    def hash(self, block: Block) -> tuple[Hashes, Hashes]:
        """`hash_rows` of the block; the seeded ones are those that `max_samples` chooses by."""
        return hash_rows(block.read(), None if self.config.max_samples is None else self.config.seed)

    def __call__(self, task: tuple[Block, Sides | int]) -> EncodedBlock:
        """Tokenize a block, given the side of each of its rows, or of all of them."""
        block, given = task
        rows = block.read()
        sides = np.broadcast_to(given, len(rows))
        reports = {side: SplitReport(int((sides == side).sum())) for side in SPLITS}
        kept: dict[int, list[_Kept]] = {side: [] for side in SPLITS}
        wanted = [(row, int(side)) for row, side in zip(rows, sides, strict=True) if side != UNUSED]
        for start in range(0, len(wanted), BATCH_ROWS):
            texts = list(self._render(wanted[start : start + BATCH_ROWS], reports))
            for side, row in self._encode(texts, reports):
                kept[side].append(row)
        for report in reports.values():
            report.varying |= self._varying
        tables = {SPLITS[side]: _pack(rows_of_side, reports[side]) for side, rows_of_side in kept.items()}
        return EncodedBlock(tables, {SPLITS[side]: report for side, report in reports.items()}, len(rows))

    def _render(
        self, rows: list[tuple[NumberedRow, int]], reports: dict[int, SplitReport]
    ) -> Iterator[tuple[int, int, SupervisedText]]:
        """Yield number, side and text of every row that can be read."""
        for (number, values), side in rows:
            try:
                yield number, side, self._render_row(number, values)
            except InvalidDataset as error:
                if self.config.invalid_rows == "error":
                    raise InvalidDataset(f"row {number}: {clean_reason(str(error))}") from error
                reports[side].note("invalid", number, str(error))

    def _render_row(self, number: int, values: Row | BrokenRow) -> SupervisedText:
        config = self.config
        if isinstance(values, BrokenRow):
            raise InvalidDataset(values.reason)
        row = read_row(values, config.dataset_format, config.dataset_text_field)
        needs_template = isinstance(row, Conversation)
        with step(f"template_name {config.template_name}: to write row {number} by the chat template"):
            if needs_template not in self._renderers:
                stop_token = apply_template(self.tokenizer, config.template_name, required=needs_template)
                masks = (config.train_on_prompt, config.mask_history)
                self._renderers[needs_template] = Renderer(self.tokenizer, stop_token, *masks, self._varying)
            return self._renderers[needs_template].render(row)

    def _encode(
        self, texts: list[tuple[int, int, SupervisedText]], reports: dict[int, SplitReport]
    ) -> Iterator[tuple[int, "_Kept"]]:
        """Yield the side and the tokens of every row that is used."""
        if not texts:
            return
        limit, cuts = self.config.max_seq_length, self.config.excess_length_strategy == "truncate"
        first, last, size = texts[0][0], texts[-1][0], sum(len(text.text) for _, _, text in texts)
        what = f"base_model {self.config.base_model}: its tokenizer on the rows {first} to {last}"
        with step(what, size), raising_unusable(what):
            encoded = list(encode(self.tokenizer, [text for _, _, text in texts]))
        for (number, side, text), (ids, labels) in zip(texts, encoded, strict=True):
            report = reports[side]
            report.note_text(text)
            if len(ids) > limit and not cuts:
                report.note("too_long", number)
                continue
            if len(ids) > limit:
                report.note("truncated", number)
                ids, labels = ids[:limit], labels[:limit]
            supervised = int(np.count_nonzero(labels[1:] != IGNORED))  # position t is predicted from those before it
            if not supervised:
                report.note("dropped", number)
                continue
            report.counts["used"] += 1
            report.counts["tokens"] += len(ids)
            report.counts["supervised_tokens"] += supervised
            yield side, _Kept(number, ids, labels)


class _Kept(NamedTuple):
    number: int
    ids: Ints  # (T,)
    labels: Ints  # (T,)


def encode(tokenizer: "PreTrainedTokenizerBase", texts: list[SupervisedText]) -> Iterator[tuple[Ints, Ints]]:
    """Yield token ids and labels, each (T,): a label is the id if the token overlaps a supervised span, else -100.

    Tokens are matched to spans by the tokenizer's character offsets.
    """
    unused = {"return_attention_mask": False, "return_token_type_ids": False}
    encoded = tokenizer([item.text for item in texts], add_special_tokens=False, verbose=False, **unused)
    for item, tokens, encoding in zip(texts, encoded["input_ids"], encoded.encodings, strict=True):
        ids = np.array(tokens, np.int32)
        labels = np.full(len(ids), IGNORED, np.int32)
        for span in item.spans:
            where = _find_tokens(encoding, *span)
            labels[where] = ids[where]
        yield ids, labels


def _find_tokens(encoding: Any, start: int, end: int) -> slice | NDArray[np.bool_]:
    """The tokens of a `tokenizers.Encoding` that overlap the characters `[start, end)`."""
    first, last = encoding.char_to_token(start), encoding.char_to_token(end - 1) if start < end else None
    if first is None or last is None:  # no token covers this character, a blank perhaps
        bounds = np.array(encoding.offsets, np.int64).reshape(-1, 2)  # (T, 2); reading all of them takes a while
        return (bounds[:, 1] > start) & (bounds[:, 0] < end)
    while (covered := encoding.token_to_chars(last + 1)) and covered[0] < end:  # of a character in several tokens
        last += 1
    return slice(first, last + 1)


def build_schema() -> "pa.Schema":
    """The columns of prepared rows."""
    import pyarrow as pa

    ids_type = pa.list_(pa.int32())
    return pa.schema([("input_ids", ids_type), ("labels", ids_type), ("length", pa.int32()), ("row", pa.int32())])


def _pack(rows: list[_Kept], report: SplitReport) -> bytes | None:
    """The rows as a stream of Arrow's, with labels; None without any."""
    import pyarrow as pa

    if not rows:
        return None
    lengths = np.array([len(row.ids) for row in rows], np.int32)
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths, dtype=np.int32)]), pa.int32())
    ids, labels = (np.concatenate([row[place] for row in rows]) for place in (1, 2))  # (tokens,)
    report.longest, report.largest_id = int(lengths.max()), int(ids.max())
    numbers = np.array([row.number for row in rows], np.int32)
    columns: list[Any] = [pa.ListArray.from_arrays(offsets, pa.array(values)) for values in (ids, labels)]
    schema, sink = build_schema(), pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as writer:
        writer.write_batch(pa.record_batch([*columns, pa.array(lengths), pa.array(numbers)], schema=schema))
    content: bytes = sink.getvalue().to_pybytes()
    return content
