import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sft.chat import chat_template
from sft.config import SFTConfig
from sft.data import cache_key
from sft.data.messages import Message
from sft.data.splits import split_rows
from sft.data.tokenization import prepare
from sft.errors import InvalidDataset, TemplateNotFound
from sft.models.loading import load_tokenizer

MakeConfig = Callable[..., SFTConfig]
WriteRows = Callable[..., Path]
LONG = " ".join(str(n) for n in range(1, 21))


def copy_model(model_path: Path, folder: Path) -> Path:
    folder.mkdir()
    for path in model_path.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def only_bad_is_held_out(rows: list[dict[str, Any]]) -> bool:
    _, held_out = split_rows(list(enumerate(rows, 1)), validation_split=0.25)
    return [row for _, row in held_out] == rows[1:]


def talk(*turns: str) -> list[Message]:
    """User and assistant in turn."""
    return [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(turns)]


@pytest.fixture
def uneven_file(write_rows: WriteRows) -> Path:
    """Rows that are used, cut, cut before their answer, without an answer and of no known shape, twice over."""
    rows = [
        {"messages": talk("Hi", "Yo")},
        {"messages": talk("Hi", LONG)},
        {"messages": talk(LONG + " 21", "Yo")},
        {"messages": talk("Hi")},
        {"messages": [{"role": "bot", "content": "Hi"}]},
    ]
    return write_rows(rows * 2)


@pytest.mark.parametrize(
    ("strategy", "counts", "notes", "lengths"),
    [
        (
            "truncate",
            {"used": 4, "dropped": 4, "too_long": 0, "truncated": 4},
            {"dropped": [3, 4, 8, 9], "too_long": [], "truncated": [2, 3, 7, 8]},
            [None, 32, None, 32],
        ),
        (
            "drop",
            {"used": 2, "dropped": 2, "too_long": 4, "truncated": 0},
            {"dropped": [4, 9], "too_long": [2, 3, 7, 8], "truncated": []},
            [None, None],
        ),
    ],
)
def test_every_row_is_accounted_for(
    model_path: Path,
    uneven_file: Path,
    tmp_path: Path,
    make_config: MakeConfig,
    strategy: str,
    counts: dict[str, int],
    notes: dict[str, list[int]],
    lengths: list[int | None],
) -> None:
    config = make_config(
        dataset_format="chat", max_seq_length=32, validation_split=0.0, excess_length_strategy=strategy
    )
    data = prepare(config, model_path, uneven_file, tmp_path / "cache")
    train = data.load_train()
    assert train["length"] == [len(ids) for ids in train["input_ids"]]
    assert [length if length == 32 else None for length in train["length"]] == lengths
    assert train["row"] == ([1, 2, 6, 7] if strategy == "truncate" else [1, 6])
    supervised = sum(label != -100 for labels in train["labels"] for label in labels)
    tokens = {"tokens": sum(train["length"]), "supervised_tokens": supervised}
    assert data.stats == {"train": {"rows": 10, "invalid": 2, **counts, **tokens}, "eval": None}
    reason = "messages[0] has the role 'bot'; known are system, developer, user, human, assistant, gpt, model, "
    invalid = data.notes["train"].pop("invalid")
    assert [number for number, _ in invalid] == [5, 10]  # type: ignore[misc]
    assert all(told.startswith(reason) for _, told in invalid)  # type: ignore[misc, union-attr]
    assert data.notes["train"] == notes
    assert data.notes["eval"] == {"invalid": [], "dropped": [], "too_long": [], "truncated": []}
    skipped = counts["dropped"] + counts["too_long"] + 2
    assert [code for code, _ in data.advice] == ["rows_skipped"]
    assert data.warnings[0].startswith(f"{skipped} of 10 rows are skipped: 2 can't be read (row 5: {reason}")
    [told] = data.reasons["train"]
    assert (told["count"], told["rows"]) == (2, [5, 10])
    described = data.describe_rows()
    assert described == {
        "train": data.stats["train"] | {"skipped": skipped, "reasons": [told]},  # type: ignore[operator]
        "eval": None,
        "ignored": {},
    }
    assert data.load_eval() is None
    again = prepare(config, model_path, uneven_file, tmp_path / "cache")
    assert again.was_cached
    assert again.notes["train"]["invalid"] == invalid


def test_too_long_can_be_an_error_that_names_the_rows(
    model_path: Path, uneven_file: Path, tmp_path: Path, make_config: MakeConfig
) -> None:
    config = make_config(dataset_format="chat", max_seq_length=32, validation_split=0.0, excess_length_strategy="error")
    message = r"4 rows are longer than max_seq_length 32 \(row 2, 3, 7, 8\); raise it, or set excess_length_strategy to"
    with pytest.raises(InvalidDataset, match=message):
        prepare(config, model_path, uneven_file, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_lists_of_rows_are_capped_and_counts_are_not(
    model_path: Path, tmp_path: Path, make_config: MakeConfig, write_rows: WriteRows
) -> None:
    rows = [{"instruction": "Hi", "output": "Yo"}, *[{"instruction": n} for n in range(150)]]
    data = prepare(make_config(validation_split=0.0), model_path, write_rows(rows), tmp_path / "cache")
    assert data.stats["train"]
    assert (data.stats["train"]["rows"], data.stats["train"]["invalid"]) == (151, 150)
    assert len(data.notes["train"]["invalid"]) == 100
    assert data.notes["train"]["invalid"][0] == [2, "instruction must be text, got 0"]


def test_a_reason_can_be_told_whatever_the_row_holds(
    model_path: Path, tmp_path: Path, make_config: MakeConfig, write_rows: WriteRows
) -> None:
    rows = [{"instruction": "Hi", "output": "Yo"}, {"\ud800": 1}, {"x" * 10_000: 1}]
    data = prepare(make_config(validation_split=0.0), model_path, write_rows(rows), tmp_path / "cache")
    [surrogate, long] = [str(reason) for _, reason in data.notes["train"]["invalid"]]  # type: ignore[misc]
    assert surrogate == "alpaca needs a column instruction; columns are \\ud800"
    assert len(long) == 500


def test_one_bad_line_is_one_invalid_row(model_path: Path, tmp_path: Path, make_config: MakeConfig) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"instruction": "Hi", "output": "Yo"}\n{"instruction": \n\n{"instruction": "Hi", "output": "a"}\n')
    data = prepare(make_config(validation_split=0.0), model_path, path, tmp_path / "cache")
    assert data.stats["train"]
    assert (data.stats["train"]["used"], data.stats["train"]["invalid"]) == (2, 1)
    assert data.notes["train"]["invalid"] == [[2, "not JSON: Expecting value at column 17"]]
    assert data.load_train()["row"] == [1, 4]
    with pytest.raises(InvalidDataset, match=r"^row 2: not JSON: Expecting value at column 17$"):
        prepare(make_config(validation_split=0.0, invalid_rows="error"), model_path, path, tmp_path / "cache")


def test_calls_of_functions_are_learned(
    model_path: Path, tmp_path: Path, make_config: MakeConfig, write_rows: WriteRows
) -> None:
    row: dict[str, Any] = {
        "conversations": [
            {"from": "human", "value": "Add"},
            {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 1}}'},
            {"from": "observation", "value": "3"},
            {"from": "gpt", "value": "It is 3"},
        ],
        "tools": '[{"name": "add", "parameters": {"type": "object"}}]',
    }
    options: dict[str, Any] = {"dataset_format": "chat", "validation_split": 0.0, "max_seq_length": 2048}
    data = prepare(make_config(template_name="qwen", **options), model_path, write_rows([row]), tmp_path / "cache")
    tokenizer = load_tokenizer(model_path)
    [labels] = data.load_train()["labels"]
    assert tokenizer.decode([label for label in labels if label >= 0]) == (
        '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call><|im_end|>It is 3<|im_end|>'
    )
    refused = r"of 1 rows 1 can't be read \(row 1: the chat template does not write tools; choose template_name qwen,"
    with pytest.raises(InvalidDataset, match=refused):
        prepare(make_config(template_name="chatml", **options), model_path, write_rows([row]), tmp_path / "cache")


def test_answers_that_the_template_rewrites_are_told_of(
    model_path: Path, tmp_path: Path, make_config: MakeConfig, write_rows: WriteRows
) -> None:
    model = copy_model(model_path, tmp_path / "other")
    (model / "chat_template.jinja").write_text(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{% if m.role == 'assistant' and loop.last %}<think></think>{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    path = write_rows([{"messages": talk("Hi", "Yo", "Why?", "So", "When?", "Now")}])
    data = prepare(make_config(dataset_format="chat"), model, path, tmp_path / "cache")
    assert [warning[:42] for warning in data.warnings] == ["2 answers are not trained on: the chat tem"]


def test_second_call_finds_what_the_first_made(
    model_path: Path, alpaca_file: Path, tmp_path: Path, make_config: MakeConfig
) -> None:
    cache = tmp_path / "cache"
    first = prepare(make_config(), model_path, alpaca_file, cache)
    moved = alpaca_file.rename(tmp_path / "other-name.json")
    second = prepare(make_config(learning_rate=5e-5, batch_size=1), model_path, moved, cache)
    assert (first.was_cached, second.was_cached) == (False, True)
    assert (second.folder, second.stats) == (first.folder, first.stats)
    assert [path.name for path in cache.iterdir()] == [first.folder.name]


@pytest.mark.parametrize(
    "change",
    [
        {"max_seq_length": 64},
        {"template_name": "qwen"},
        {"validation_split": 0.5},
        {"max_samples": 6},
        {"seed": 1},
        {"train_on_prompt": True},
        {"mask_history": True},
        {"excess_length_strategy": "drop"},
        {"invalid_rows": "error"},
        {"dataset_format": "auto"},
    ],
)
def test_whatever_changes_the_tokens_is_tokenized_anew(
    model_path: Path, alpaca_file: Path, tmp_path: Path, make_config: MakeConfig, change: dict[str, object]
) -> None:
    first = prepare(make_config(), model_path, alpaca_file, tmp_path / "cache")
    second = prepare(make_config(**change), model_path, alpaca_file, tmp_path / "cache")
    assert not second.was_cached
    assert second.folder != first.folder


def test_changed_rows_and_changed_tokenizer_are_tokenized_anew(
    model_path: Path, alpaca_file: Path, tmp_path: Path, make_config: MakeConfig, write_rows: WriteRows
) -> None:
    folders = {prepare(make_config(), model_path, alpaca_file, tmp_path / "cache").folder}
    rows = json.loads(alpaca_file.read_text())
    write_rows([*rows, {"instruction": "New", "output": "row"}])
    folders.add(prepare(make_config(), model_path, alpaca_file, tmp_path / "cache").folder)
    other = copy_model(model_path, tmp_path / "other-model")
    (other / "chat_template.jinja").write_text((other / "chat_template.jinja").read_text() + "\n")
    folders.add(prepare(make_config(), other, alpaca_file, tmp_path / "cache").folder)
    assert len(folders) == 3


def test_changed_code_is_run_anew(
    model_path: Path, alpaca_file: Path, tmp_path: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = {prepare(make_config(), model_path, alpaca_file, tmp_path / "cache").folder}
    monkeypatch.setattr(cache_key, "FORMAT_VERSION", cache_key.FORMAT_VERSION + 1)
    folders.add(prepare(make_config(), model_path, alpaca_file, tmp_path / "cache").folder)
    monkeypatch.setattr(cache_key, "CODE", (*cache_key.CODE, "config.py"))
    folders.add(prepare(make_config(), model_path, alpaca_file, tmp_path / "cache").folder)
    assert len(folders) == 3


def test_a_changed_template_file_is_tokenized_anew(
    model_path: Path, alpaca_file: Path, tmp_path: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = chat_template._read
    folders = {prepare(make_config(template_name="chatml"), model_path, alpaca_file, tmp_path / "cache").folder}
    monkeypatch.setattr(chat_template, "_read", lambda file: read(file) + "{# changed #}")
    folders.add(prepare(make_config(template_name="chatml"), model_path, alpaca_file, tmp_path / "cache").folder)
    assert len(folders) == 2


def test_another_template_for_tools_is_tokenized_anew(
    model_path: Path, write_rows: Callable[..., Path], tmp_path: Path, make_config: MakeConfig
) -> None:
    model, tokenizer = tmp_path / "model", load_tokenizer(model_path)
    tokenizer.chat_template = {"default": tokenizer.chat_template, "tool_use": "{{ tools }}" + tokenizer.chat_template}
    tokenizer.save_pretrained(model)
    tools = [{"type": "function", "function": {"name": "look"}}]
    data = write_rows([{"messages": talk("Hi", "Yo"), "tools": tools}])
    first, again = (prepare(make_config(dataset_format="chat"), model, data, tmp_path / "cache") for _ in range(2))
    [file] = (model / "additional_chat_templates").iterdir()
    file.write_text("TOOLS " + file.read_text(encoding="utf-8"), encoding="utf-8")
    changed = prepare(make_config(dataset_format="chat"), model, data, tmp_path / "cache")
    assert [one.was_cached for one in (first, again, changed)] == [False, True, False]


def test_a_torn_folder_is_made_anew(
    model_path: Path, alpaca_file: Path, tmp_path: Path, make_config: MakeConfig
) -> None:
    first = prepare(make_config(), model_path, alpaca_file, tmp_path / "cache")
    expected = first.load_train().to_list()
    content = (first.folder / "train-00000.arrow").read_bytes()
    (first.folder / "train-00000.arrow").unlink()
    (first.folder / "train-00000.arrow").write_bytes(content[: len(content) // 2])
    second = prepare(make_config(), model_path, alpaca_file, tmp_path / "cache")
    assert not second.was_cached
    assert second.load_train().to_list() == expected


def test_held_out_file_is_taken_as_it_is(
    model_path: Path, alpaca_file: Path, tmp_path: Path, make_config: MakeConfig, write_rows: WriteRows
) -> None:
    eval_file = write_rows([{"instruction": "Held", "output": "out"}], "eval.json")
    data = prepare(make_config(), model_path, alpaca_file, tmp_path / "cache", eval_file)
    assert data.stats["train"]["rows"] == 12  # type: ignore[index]
    assert data.stats["eval"]["rows"] == 1  # type: ignore[index]
    assert data.load_eval().num_rows == 1  # type: ignore[union-attr]


def test_nothing_to_learn_is_an_error_that_leaves_nothing_behind(
    model_path: Path, tmp_path: Path, make_config: MakeConfig, write_rows: WriteRows
) -> None:
    path = write_rows([{"instruction": "Hi", "output": "Yo"}])
    with pytest.raises(
        InvalidDataset,
        match=r"nothing to learn from in .*rows.json: of 1 rows 1 have no answer to learn within max_seq_length 4$",
    ):
        prepare(make_config(max_seq_length=4), model_path, path, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_dataset_of_another_format_tells_of_its_first_row(
    model_path: Path, tmp_path: Path, make_config: MakeConfig, write_rows: WriteRows
) -> None:
    path = write_rows([{"question": "Hi", "answer": "Yo"}] * 3)
    message = r"of 3 rows 3 can't be read \(row 1: alpaca needs a column instruction; columns are question, answer\)$"
    with pytest.raises(InvalidDataset, match=message):
        prepare(make_config(validation_split=0.0), model_path, path, tmp_path / "cache")


def test_held_out_rows_that_cannot_be_used_are_told_of(
    model_path: Path, tmp_path: Path, make_config: MakeConfig, write_rows: WriteRows
) -> None:
    good = [{"instruction": f"Hi {n}", "output": "Yo"} for n in range(9)]
    bad = [{"instruction": "Hi"}]
    data = prepare(make_config(), model_path, write_rows(good), tmp_path / "cache", write_rows(good, "eval.json"))
    assert data.warnings == []
    with pytest.raises(InvalidDataset, match=r"nothing to learn from in .*eval.json: of 1 rows 1 can't be read"):
        prepare(make_config(), model_path, write_rows(good), tmp_path / "cache", write_rows(bad, "eval.json"))
    rows = next(rows for n in range(99) if only_bad_is_held_out(rows := [*good[:1], {"instruction": n}]))
    data = prepare(make_config(), model_path, write_rows(rows), tmp_path / "cache")
    assert (data.stats["eval"], data.load_eval()) == (None, None)
    assert data.warnings == ["none of the 1 rows held out for evaluation can be used, so there is no eval_loss"]


def test_errors_name_the_row_of_the_file(
    model_path: Path, tmp_path: Path, make_config: MakeConfig, write_rows: WriteRows
) -> None:
    path = write_rows([{"instruction": "Hi", "output": "Yo"}, {"instruction": "Hi"}])
    with pytest.raises(InvalidDataset, match="row 2: alpaca needs a column output; columns are instruction"):
        prepare(make_config(validation_split=0.0, invalid_rows="error"), model_path, path, tmp_path / "cache")
    with pytest.raises(InvalidDataset, match=r"missing.json is not a file"):
        prepare(make_config(), model_path, tmp_path / "missing.json", tmp_path / "cache")
    with pytest.raises(TemplateNotFound, match="'nope' is not known"):
        prepare(make_config(template_name="nope"), model_path, path, tmp_path / "cache")
    with pytest.raises(TemplateNotFound, match=r"llama3 needs <\|start_header_id\|>"):
        prepare(make_config(template_name="llama3"), model_path, path, tmp_path / "cache")


def test_rows_of_parquet_are_tokenized_as_those_of_jsonl(
    model_path: Path, tmp_path: Path, make_config: MakeConfig, write_rows: WriteRows
) -> None:
    """Whatever nulls Arrow put into calls, schemas, parts and absent columns."""

    def row(name: str, schema: dict[str, Any], **arguments: Any) -> dict[str, Any]:
        call = {"type": "function", "function": {"name": name, "arguments": arguments}}
        function = {"name": name, "parameters": {"type": "object", "properties": schema}}
        messages = [*talk("Go"), {"role": "assistant", "tool_calls": [call]}, {"role": "tool", "content": "3"}]
        return {
            "messages": [*messages, {"role": "assistant", "content": "So."}],
            "tools": [{"type": "function", "function": function}],
        }

    rows: list[dict[str, Any]] = [
        row("add", {"a": {"type": "integer"}}, a=1) | {"source": "web"},
        row("now", {"zone": {"enum": ["UTC"], "default": "UTC"}}, zone="UTC"),
        row("stop", {}),
        {"messages": talk("Hi", "Yo", "Why?", "So"), "tools": []},
    ]
    for message in (message for entry in rows for message in entry["messages"] if "content" in message):
        message["content"] = [{"type": "text", "text": message["content"]}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    config = make_config(dataset_format="auto", template_name="qwen", max_seq_length=1024, validation_split=0.3)
    paths = (write_rows(rows), tmp_path / "rows.parquet")
    lines, table = (prepare(config, model_path, path, tmp_path / "cache") for path in paths)
    assert lines.stats == table.stats
    assert lines.load_train()[:] == table.load_train()[:]
    assert lines.load_eval()[:] == table.load_eval()[:]  # type: ignore[index]
    assert lines.ignored == table.ignored == {"source": 1}


def test_fields_that_are_not_followed_are_counted_and_said(
    model_path: Path, tmp_path: Path, make_config: MakeConfig, write_rows: WriteRows
) -> None:
    rows: list[dict[str, Any]] = [{"instruction": f"Say {n}", "output": str(n), "source": "web"} for n in range(8)]
    rows[0] |= {"label": 1, "output": ""}
    for row in rows[:3]:
        row["weight"] = 0.5  # of a row; an assistant's turn has one that is followed
    data = prepare(make_config(), model_path, write_rows(rows), tmp_path / "cache")
    assert data.ignored == {"source": 8, "weight": 3, "label": 1}
    assert data.advice == [
        (
            "ignored_fields",
            "fields that are not used: source (8 rows), weight (3 rows), label (1 rows)",
        ),
        ("empty_answers", "1 answers have no text: the model learns to end the turn at once"),
    ]
    assert prepare(make_config(), model_path, write_rows(rows), tmp_path / "cache").advice == data.advice
