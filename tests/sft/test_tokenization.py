import json
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from sft.config import SFTConfig
from sft.errors import InvalidDataset, TemplateNotFound
from sft.formats import Conversation, Message, PlainText
from sft.splits import split_rows
from sft.supervision import render_row
from sft.templates import apply_template
from sft.tokenization import encode, prepare

MakeConfig = Callable[..., SFTConfig]
WriteRows = Callable[..., Path]


def talk(*turns: str) -> list[Message]:
    """User and assistant in turn."""
    return [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(turns)]


def tokenize(
    tokenizer: PreTrainedTokenizerFast, row: Conversation | PlainText, template: str = "chatml"
) -> tuple[list[int], list[int]]:
    stop_token = apply_template(tokenizer, template, required=False)
    return next(encode(tokenizer, [render_row(tokenizer, stop_token, row)]))


def test_exact_ids_and_labels_of_two_turns(tokenizer: PreTrainedTokenizerFast) -> None:
    ids, labels = tokenize(tokenizer, Conversation(talk("Hi", "Yo.", "Why?", "So")))
    start, end = 1, 2  # <|im_start|>, <|im_end|>
    newline = tokenizer.encode("\n")
    user, assistant = tokenizer.encode("user\n"), tokenizer.encode("assistant\n")
    hi, yo, why, so = (tokenizer.encode(text) for text in ("Hi", "Yo.", "Why?", "So"))
    assert ids == [
        *[start, *user, *hi, end, *newline, start, *assistant, *yo, end, *newline],
        *[start, *user, *why, end, *newline, start, *assistant, *so, end, *newline],
    ]
    ignored = [-100]
    assert labels == [
        *ignored * (1 + len(user) + len(hi) + 1 + 1 + 1 + len(assistant)),
        *[*yo, end],
        *ignored * (1 + 1 + len(user) + len(why) + 1 + 1 + 1 + len(assistant)),
        *[*so, end],
        *ignored,
    ]


@pytest.mark.parametrize(
    ("template", "learned"),
    [
        ("chatml", ["Paris.<|im_end|>", "Blue\n<|im_end|>"]),
        ("qwen", ["Paris.<|im_end|>", "Blue\n<|im_end|>"]),
        ("default", ["Paris.<|endoftext|>", "Blue\n<|endoftext|>"]),
        ("alpaca", ["Paris.<|endoftext|>", "Blue\n<|endoftext|>"]),
    ],
)
def test_only_answers_are_learned_each_with_its_end(
    tokenizer: PreTrainedTokenizerFast, template: str, learned: list[str]
) -> None:
    row = Conversation(talk("Capital of France?", "Paris.", "A <|im_end|> colour? assistant\nParis.", "Blue\n"))
    _, labels = tokenize(tokenizer, row, template)
    runs = [run for run in "".join("." if label < 0 else "x" for label in labels).split(".") if run]
    assert len(runs) == 2
    assert tokenizer.decode([label for label in labels if label >= 0]) == "".join(learned)


def test_earlier_answers_of_a_prompt_are_read_only(tokenizer: PreTrainedTokenizerFast) -> None:
    _, labels = tokenize(tokenizer, Conversation(talk("Hi", "Yo", "Why?", "So"), supervised_from=3))
    assert tokenizer.decode([label for label in labels if label >= 0]) == "So<|im_end|>"


def test_a_template_that_drops_earlier_reasoning_still_shows_every_answer(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{% if m.role == 'assistant' and loop.last %}<think></think>{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    _, labels = tokenize(tokenizer, Conversation(talk("Hi", "Yo", "Why?", "So")), "auto")
    assert tokenizer.decode([label for label in labels if label >= 0]) == "Yo<|im_end|><think></think>So<|im_end|>"


def test_a_template_that_rewrites_the_prompt_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = "{{ messages | length }}{% for m in messages %}{{ m.content }}<|im_end|>\n{% endfor %}"
    with pytest.raises(InvalidDataset, match=r"messages\[1\]: the chat template writes the messages before"):
        tokenize(tokenizer, Conversation(talk("Hi", "Yo")), "auto")


def test_what_a_template_refuses_is_told(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        "{{ m.content }}<|im_end|>{% endfor %}"
    )
    row = Conversation([{"role": "system", "content": "x"}, *talk("Hi", "Yo")])
    with pytest.raises(InvalidDataset, match="the chat template refuses this conversation: no system role"):
        tokenize(tokenizer, row, "auto")


def test_plain_text_is_learned_whole_and_a_prompt_is_not(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = None
    ids, labels = tokenize(tokenizer, PlainText("", "Red and blue."), "auto")
    assert ids == labels == [*tokenizer.encode("Red and blue."), 0]
    ids, labels = tokenize(tokenizer, PlainText("Red", " and blue.<|endoftext|>"), "auto")
    assert tokenizer.decode(ids) == "Red and blue.<|endoftext|>"
    assert tokenizer.decode([label for label in labels if label >= 0]) == " and blue.<|endoftext|>"


def test_plain_text_gets_one_beginning_of_sequence(tokenizer: PreTrainedTokenizerFast) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer.add_special_tokens({"bos_token": "<s>"})
    bos = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", bos)])
    tokenizer.chat_template = None
    for text in ("Red", "<s>Red"):
        ids, labels = tokenize(tokenizer, PlainText("", text), "auto")
        assert ids.count(bos) == 1
        assert ids[0] == bos
        assert labels[-1] == 0


def test_split_moves_no_row_when_rows_are_added() -> None:
    rows = [{"text": str(n)} for n in range(400)]
    train, held_out = split_rows(rows[:200], validation_split=0.2)
    train_later, held_out_later = split_rows(rows[::-1], validation_split=0.2)
    contents = [{row["text"] for _, row in part} for part in (train, held_out, train_later, held_out_later)]
    assert contents[0] <= contents[2]
    assert contents[1] <= contents[3]
    assert 25 < len(held_out) < 55
    assert [number for number, _ in train] == sorted(number for number, _ in train)


def test_split_leaves_neither_side_empty_and_equal_rows_together() -> None:
    rows = [{"text": "a"}, {"text": "b"}]
    for share in (0.001, 0.999):
        train, held_out = split_rows(rows, validation_split=share)
        assert (len(train), len(held_out)) == (1, 1)
    assert split_rows(rows[:1], validation_split=0.5) == ([(1, {"text": "a"})], [])
    same = [{"text": "same"}] * 5 + [{"text": str(n)} for n in range(20)]
    train, held_out = split_rows(same, validation_split=0.5)
    assert sum(row["text"] == "same" for _, row in train) in (0, 5)


def test_max_samples_is_a_seeded_choice() -> None:
    rows = [{"text": str(n)} for n in range(50)]
    first, _ = split_rows(rows, max_samples=10, seed=1)
    assert len(first) == 10
    assert first == split_rows(rows, max_samples=10, seed=1)[0]
    assert first != split_rows(rows, max_samples=10, seed=2)[0]
    assert first == [(number, rows[number - 1]) for number, _ in first]


def test_prepared_data_counts_what_was_cut_and_dropped(
    model_path: Path, tmp_path: Path, make_config: MakeConfig, write_rows: WriteRows
) -> None:
    rows = [
        {"messages": talk("Hi", "Yo")},  # whole
        {"messages": talk("Hi", "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20")},  # cut
        {"messages": talk("1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21", "Yo")},  # cut before its answer
        {"messages": talk("Hi")},  # no answer
    ]
    path = write_rows(rows)
    config = make_config(dataset_format="chat", max_seq_length=32, validation_split=0.0)
    data = prepare(config, model_path, path, tmp_path / "cache")
    train = data.load_train()
    lengths = [len(ids) for ids in train["input_ids"]]
    assert lengths[1] == 32
    assert train["length"] == lengths
    supervised = sum(label != -100 for labels in train["labels"] for label in labels)
    assert data.stats == {
        "train": {
            "rows": 4,
            "used": 2,
            "dropped": 2,
            "truncated": 2,
            "tokens": sum(lengths),
            "supervised_tokens": supervised,
        },
        "eval": None,
    }
    assert data.load_eval() is None


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
    [{"max_seq_length": 64}, {"template_name": "qwen"}, {"validation_split": 0.5}, {"max_samples": 6}, {"seed": 1}],
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
    other = tmp_path / "other-model"
    other.mkdir()
    for path in model_path.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    (other / "chat_template.jinja").write_text((other / "chat_template.jinja").read_text() + "\n")
    folders.add(prepare(make_config(), other, alpaca_file, tmp_path / "cache").folder)
    assert len(folders) == 3


def test_a_torn_folder_is_made_anew(
    model_path: Path, alpaca_file: Path, tmp_path: Path, make_config: MakeConfig
) -> None:
    first = prepare(make_config(), model_path, alpaca_file, tmp_path / "cache")
    expected = first.load_train().to_list()
    content = (first.folder / "train.arrow").read_bytes()
    (first.folder / "train.arrow").unlink()
    (first.folder / "train.arrow").write_bytes(content[: len(content) // 2])
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
    with pytest.raises(InvalidDataset, match=r"nothing to learn from in .*rows.json: no row of 1 has an answer within"):
        prepare(make_config(max_seq_length=4), model_path, path, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_errors_name_the_row_of_the_file(
    model_path: Path, tmp_path: Path, make_config: MakeConfig, write_rows: WriteRows
) -> None:
    rows = [{"instruction": "Hi", "output": "Yo"}, {"instruction": "Hi"}]
    path = write_rows(rows)
    with pytest.raises(InvalidDataset, match="row 2: alpaca needs a column output; columns are instruction"):
        prepare(make_config(validation_split=0.0), model_path, path, tmp_path / "cache")
    with pytest.raises(InvalidDataset, match=r"missing.json is not a file"):
        prepare(make_config(), model_path, tmp_path / "missing.json", tmp_path / "cache")
    with pytest.raises(TemplateNotFound, match="'nope' is not known"):
        prepare(make_config(template_name="nope"), model_path, path, tmp_path / "cache")
