"""Which files of a dataset's folder are learned from and held out, by their names."""

import pytest

from sft.errors import DatasetNotFound, InvalidDataset
from tasks.split_files import HELD_OUT, pick_files


@pytest.mark.parametrize("name", HELD_OUT)
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet", ".JSON", "-00000-of-00001.parquet"])
def test_a_held_out_file_is_found_under_each_of_its_names(name: str, suffix: str) -> None:
    names = ["train.jsonl", f"{name}{suffix}", "README.md"]
    assert pick_files(names, "train") == ("train.jsonl", f"{name}{suffix}", [])


@pytest.mark.parametrize(
    ("names", "split", "held_out"),
    [
        (["train.csv", "test.csv", "dev.csv", "val.csv", "validation.csv", "eval.csv"], "train", "eval.csv"),
        (["train.csv", "test.csv", "validation.csv"], "train", "validation.csv"),
        (["train.csv", "eval.csv", "validation.csv"], "eval", "validation.csv"),
        (["train.csv", "eval.csv"], "eval", None),
        (["train.csv", "test.csv"], "test", None),
        (["train_sft.csv", "test_gen.csv", "test_sft.csv", "validation.csv"], "train_sft", "test_sft.csv"),
    ],
)
def test_the_order_of_held_out_files(names: list[str], split: str, held_out: str | None) -> None:
    picked = pick_files(names, split)
    assert picked.train == f"{split}.csv"
    assert picked.held_out == held_out


def test_files_of_a_split_of_another_kind_are_named() -> None:
    names = ["train.jsonl", "train.txt", "test.tsv", "README.txt", "notes.yaml"]
    assert pick_files(names, "train") == ("train.jsonl", None, ["test.tsv", "train.txt"])
    with pytest.raises(
        InvalidDataset, match=r"the dataset's train.tsv is of a kind that is not read; save it as one of"
    ):
        pick_files(["train.tsv", "test.jsonl"], "train")


def test_a_split_in_parts_is_named_by_the_first_one() -> None:
    names = [
        *(f"train-{number:05}-of-00012.jsonl.gz" for number in range(12)),
        "validation-00000-of-00002.parquet",
        "validation-00001-of-00002.parquet",
        "test.jsonl.zst",
    ]
    assert pick_files(names, "train") == (names[0], names[12], [])
    assert pick_files([*names, "train.jsonl"], "train") == ("train.jsonl", names[12], names[:12])


def test_files_of_rows_that_are_used_for_nothing_are_named() -> None:
    names = [
        "train.jsonl",
        "train.parquet",
        "train-extra.jsonl",
        "validation.jsonl.bz2",
        "test-00000-of-00003.parquet",
        "test-00001-of-00003.parquet",
        "notes.txt",
        ".hidden.jsonl",
    ]
    assert pick_files(names, "train") == (
        "train.jsonl",
        None,
        [
            "test-00000-of-00003.parquet",
            "test-00001-of-00003.parquet",
            "train-extra.jsonl",
            "train.parquet",
            "validation.jsonl.bz2",
        ],
    )


@pytest.mark.parametrize(
    ("names", "kind", "message"),
    [
        (["train.jsonl.bz2"], InvalidDataset, r"the dataset's train\.jsonl\.bz2 is compressed; unpack it"),
        (["train.csv.zst"], InvalidDataset, r"train\.csv\.zst is compressed"),
        (
            ["train-00000-of-00003.parquet", "train-00002-of-00003.parquet"],
            InvalidDataset,
            r"train-00000-of-00003\.parquet is one of 3 parts, of which train-00001-of-00003\.parquet is missing",
        ),
        (["data.jsonl"], DatasetNotFound, r"has no train\.jsonl, .*; it has: data\.jsonl"),
        ([], DatasetNotFound, "it has: no files"),
    ],
)
def test_a_split_that_is_not_there_or_not_readable_is_told(
    names: list[str], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        pick_files(names, "train")
