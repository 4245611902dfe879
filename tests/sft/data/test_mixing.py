"""The rows of several datasets are mixed by their weights, exactly, and every one is accounted for."""

import pickle
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from sft.config import SFTConfig
from sft.data.mixing import PLANNED_ROWS, MixedData, MixedPart, choose_rows
from sft.data.tokenization import prepare, prepare_sample
from sft.errors import InvalidDataset
from sft.planning.tokens import find_duplicates, read_tokens

Mix = Callable[..., MixedData]


@pytest.fixture
def mix(
    write_rows: Callable[..., Path], make_config: Callable[..., SFTConfig], model_path: Path, tmp_path: Path
) -> Mix:
    """A mix of files: name, weight (None: to evaluate on) and number of rows of each."""

    def make(*files: tuple[str, float | None, int], share: float = 0.0, is_plan: bool = False) -> MixedData:
        parts = []
        for name, weight, count in files:
            path = write_rows([{"instruction": f"{name} {n}", "output": f"{n}"} for n in range(count)], f"{name}.json")
            config = make_config(validation_split=share if weight else 0.0)
            parts.append(MixedPart(name, name, weight, prepare(config, model_path, path, tmp_path / "cache")))
        return MixedData(parts, seed=42, is_plan=is_plan)

    return make


def count(mixed: MixedData) -> dict[str, Counter[int]]:
    """How often an epoch takes each row, by dataset and number in its file."""
    found: dict[str, Counter[int]] = {}
    for number in mixed.load_train()["row"]:
        row, _, name = mixed.name_row(number).partition(" of ")
        found.setdefault(name, Counter())[int(row)] += 1
    return found


def test_an_epoch_takes_each_datasets_rows_by_its_weight(mix: Mix) -> None:
    mixed = mix(("whole", 1.0, 7), ("part", 0.3, 20), ("more", 2.25, 8))
    found = count(mixed)

    assert found["whole"] == Counter(range(1, 8))
    assert sum(found["part"].values()) == 6
    assert set(found["part"].values()) == {1}
    assert sum(found["more"].values()) == 18
    assert sorted(found["more"].values()) == [2] * 6 + [3] * 2
    told = [(part["taken"], part["repeated"], part["left_out"]) for part in mixed.describe_parts()]
    assert told == [(7, 0, 0), (6, 0, 14), (18, 10, 0)]
    assert [part["first_row"] for part in mixed.describe_parts()] == [1, 8, 28]
    assert mixed.stats["train"] is not None
    assert mixed.stats["train"]["used"] == 35
    assert count(pickle.loads(pickle.dumps(mixed))) == found  # noqa: S301 - as another process gets it


def test_a_row_of_the_mix_is_the_row_of_its_own_file(mix: Mix) -> None:
    mixed = mix(("a", 1.0, 5), ("b", 1.5, 4))
    for row in mixed.load_train():
        number, _, name = mixed.name_row(row["row"]).partition(" of ")
        own = mixed.parts["ab".index(name)].rows.load_train()
        assert row["input_ids"] == own[[*own["row"]].index(int(number))]["input_ids"]


def test_a_higher_weight_adds_rows_and_takes_none_away() -> None:
    chosen = [set(choose_rows(200, taken, 42, 1).tolist()) for taken in range(1, 201)]
    assert all(fewer < more for fewer, more in pairwise(chosen))
    assert chosen[-1] == set(range(200))
    assert set(choose_rows(200, 50, 43, 1).tolist()) != chosen[49]
    assert set(choose_rows(200, 50, 42, 0).tolist()) != chosen[49]
    assert choose_rows(5, 5, 42, 0).tolist() == [0, 1, 2, 3, 4]
    assert choose_rows(10, 3, 42, 0).tolist() == [0, 4, 6]  # for good: a resumed run must choose the same


def test_each_dataset_holds_its_own_rows_out(mix: Mix) -> None:
    mixed = mix(("a", 1.0, 12), ("b", 2.0, 12), share=0.25)
    held_out = mixed.load_eval()
    assert held_out is not None
    parts = mixed.load_eval_parts()
    assert [*parts] == ["a", "b"]
    assert len(held_out) == sum(map(len, parts.values()))
    assert mixed.stats["eval"] is not None
    assert mixed.stats["eval"]["used"] == len(held_out)
    assert not {*held_out["row"]} & {*mixed.load_train()["row"]}


def test_a_dataset_to_evaluate_on_is_not_trained_on(mix: Mix) -> None:
    mixed = mix(("a", 1.0, 6), ("b", 0.5, 6), ("held", None, 4))
    assert set(count(mixed)) == {"a", "b"}
    assert mixed.load_eval_parts() == {}  # of one dataset, whose loss is the total
    held_out = mixed.load_eval()
    assert held_out is not None
    assert [mixed.name_row(number) for number in held_out["row"]] == [f"{n} of held" for n in range(1, 5)]
    train, _, held = mixed.describe_parts()
    assert (train["eval"], held["train"], held["taken"]) == (None, None, None)
    assert held["eval"]["used"] == 4


def test_a_weight_that_leaves_no_row_is_refused_by_its_place(mix: Mix) -> None:
    with pytest.raises(InvalidDataset, match=r"dataset_name\.1\.weight 0.01 leaves none of the 10 rows of b; raise it"):
        mix(("a", 1.0, 2), ("b", 0.01, 10))


def test_reasons_name_the_dataset(
    mix: Mix, write_rows: Callable[..., Path], make_config: Callable[..., SFTConfig], model_path: Path, tmp_path: Path
) -> None:
    rows: list[dict[str, Any]] = [{"instruction": "a", "output": "b"}, {"instruction": "a", "output": 3}]
    broken = prepare(make_config(validation_split=0.0), model_path, write_rows(rows), tmp_path / "cache")
    good = mix(("good", 1.0, 3)).parts[0]
    mixed = MixedData([good, MixedPart("broken", "broken", 1.0, broken)], seed=42)
    [reason] = mixed.describe_rows()["train"]["reasons"]
    assert reason["reason"].startswith("broken: output must be text")
    assert reason["rows"] == [2]  # in its own file
    assert mixed.notes["train"]["invalid"] == [[5, reason["reason"]]]  # counted through
    assert mixed.name_row(5) == "2 of broken"
    assert any(message.startswith("broken: 1 of 2 rows are skipped") for message in mixed.warnings)


def test_a_plan_looks_at_fewer_rows_in_the_same_proportions(mix: Mix, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sft.data.mixing.PLANNED_ROWS", 30)
    mixed = mix(("a", 1.0, 60), ("b", 2.0, 30), is_plan=True)
    found = {name: sum(rows.values()) for name, rows in count(mixed).items()}
    assert found == {"a": 15, "b": 15}
    assert mixed.measure_scales(None)[0] == pytest.approx(4.0)
    assert [part["taken"] for part in mixed.describe_parts()] == [60, 60]
    assert PLANNED_ROWS > 30


def test_a_plan_of_a_sample_keeps_the_proportions(
    mix: Mix, write_rows: Callable[..., Path], make_config: Callable[..., SFTConfig], model_path: Path, tmp_path: Path
) -> None:
    path = write_rows([{"instruction": f"many {n}", "output": f"{n}"} for n in range(3000)], "many.json")
    config = make_config(validation_split=0.0)
    many = prepare_sample(config, model_path, path, tmp_path / "cache", None, 3000)
    assert many.sample is not None
    few = mix(("few", 1.0, 10)).parts[0]
    mixed = MixedData([few, MixedPart("many", "many", 0.5, many)], seed=42, is_plan=True)
    assert [part["taken"] for part in mixed.describe_parts()] == [10, 1500]
    assert mixed.sample == {"rows": 10 + many.sample["rows"], "of": 3010, "eval_rows": 0, "eval_of": 0}
    held = MixedData([few, MixedPart("many", "many", None, many)], seed=42, is_plan=True)
    assert held.sample == {"rows": 10, "of": 10, "eval_rows": many.sample["rows"], "eval_of": 3000}
    assert held.measure_scales(None) == (1.0, 3000 / many.sample["rows"])
    found = {name: sum(rows.values()) for name, rows in count(mixed).items()}
    assert found == {"few": 10, "many": 1500}


def test_a_row_that_is_taken_again_is_no_duplicate(mix: Mix) -> None:
    assert find_duplicates(read_tokens(mix(("a", 3.0, 5)).load_train())) == []
