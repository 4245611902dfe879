from typing import Any

from sft.data.rows import BrokenRow, NumberedRow
from sft.data.splits import split_rows


def number(rows: list[Any]) -> list[NumberedRow]:
    return list(enumerate(rows, 1))


def number_texts(*texts: object) -> list[NumberedRow]:
    return number([{"text": str(text)} for text in texts])


def list_texts(rows: list[NumberedRow]) -> list[str]:
    return [row["text"] for _, row in rows if isinstance(row, dict)]


def test_no_row_changes_sides_when_rows_are_added() -> None:
    train, held_out = split_rows(number_texts(*range(200)), validation_split=0.2)
    train_later, held_out_later = split_rows(number_texts(*reversed(range(400))), validation_split=0.2)
    assert set(list_texts(train)) < set(list_texts(train_later))
    assert set(list_texts(held_out)) < set(list_texts(held_out_later))
    assert 25 < len(held_out) < 55
    assert [row_number for row_number, _ in train] == sorted(row_number for row_number, _ in train)


def test_equal_rows_stay_together_so_that_none_is_on_both_sides() -> None:
    copies = number_texts(*(n % 50 for n in range(500)))
    for share in (0.001, 0.1, 0.5, 0.999):
        train, held_out = split_rows(copies, validation_split=share)
        assert not set(list_texts(train)) & set(list_texts(held_out))
        assert len(train) + len(held_out) == 500
        assert min(len(train), len(held_out)) >= 10


def test_neither_side_is_left_empty_where_rows_differ() -> None:
    for share in (0.001, 0.999):
        train, held_out = split_rows(number_texts("a", "b"), validation_split=share)
        assert (len(train), len(held_out)) == (1, 1)
    for rows in (number_texts("a"), number_texts("a", "a", "a")):
        assert split_rows(rows, validation_split=0.5) == (rows, [])


def test_max_samples_is_a_seeded_choice() -> None:
    rows = number_texts(*range(50))
    first, _ = split_rows(rows, max_samples=10, seed=1)
    assert len(first) == 10
    assert first == split_rows(rows, max_samples=10, seed=1)[0]
    assert first != split_rows(rows, max_samples=10, seed=2)[0]
    assert first == [rows[row_number - 1] for row_number, _ in first]


def test_rows_that_cannot_be_read_are_split_like_others() -> None:
    rows = number([BrokenRow(str(n), "not JSON") for n in range(100)])
    train, held_out = split_rows(rows, validation_split=0.5)
    assert 25 < len(held_out) < 75
    assert sorted([*train, *held_out]) == rows
