"""A version is compared with the one before it where both were measured on the same rows, and only there."""

import json

import pytest

from sft.config import SFTConfig
from sft.data.tokenization import prepare
from tasks.comparison import Version, compare, digest_held_out, read_version
from tests.tiny_models import save_tiny_llama

NEW = Version("2", 1.5, "a")


@pytest.mark.parametrize(
    ("previous", "is_worse", "said"),
    [
        (Version("1", 1.2, "a"), True, "version 2 is worse than version 1: held-out loss 1.5 after 1.2 on the same"),
        (Version("1", 1.6, "a"), False, "version 2 is no worse than version 1: held-out loss 1.5 after 1.6"),
        (Version("1", 1.5, "a"), False, "version 2 is no worse"),
        (Version("1", 1.2, "b"), None, "can't be compared with version 1: other rows were held out"),
        (Version("1", 1.2, None), None, "the earlier one does not say which rows were held out"),
        (Version("1", None, None), None, "no rows were held out from the earlier one"),
    ],
)
def test_it_says_how_they_stand_or_why_it_can_not(previous, is_worse, said):
    facts = compare(NEW, previous)
    assert (facts["is_worse"], facts["previous_version"]) == (is_worse, "1")
    assert facts["previous_eval_loss"] == previous.eval_loss
    assert said in facts["comparison"]


def test_without_a_loss_or_a_version_before_there_is_nothing_to_compare():
    assert compare(NEW._replace(eval_loss=None), Version("1", 1.2, "a"))["is_worse"] is None
    assert set(compare(NEW, None).values()) == {None}


@pytest.mark.parametrize("tags", [{}, {"eval_loss": "None", "held_out": ""}])
def test_tags_of_earlier_releases_are_read(tags):
    assert read_version("1", tags) == Version("1", None, None)
    assert read_version("1", {"eval_loss": "1.25", "held_out": "a"}) == Version("1", 1.25, "a")


def test_the_same_held_out_rows_have_the_same_digest_however_they_came(tmp_path):
    save_tiny_llama(tmp_path / "model")

    def digest(name, held_out, **further):
        plain = {"base_model": "m", "dataset_name": "d", "dataset_format": "auto", "template_name": "chatml"}
        config = SFTConfig.from_dict(plain | further)
        for split, rows in (("train", range(9)), ("eval", held_out)):
            lines = [{"instruction": f"say {row}", "output": f"{row}"} for row in rows]
            (tmp_path / f"{name}-{split}.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        files = (tmp_path / f"{name}-train.jsonl", tmp_path / f"{name}-eval.jsonl")
        train, held = files if held_out else (files[0], None)
        return digest_held_out(prepare(config, tmp_path / "model", train, tmp_path / "cache", held))

    first = digest("a", [1, 2])
    assert first == digest("b", [1, 2], seed=7, max_samples=5)
    assert len({first, digest("c", [2, 1]), digest("d", [1, 2, 3]), digest("e", [1])}) == 4
    assert digest("f", [1, 2], train_on_prompt=True) != first
    assert digest("g", [], validation_split=0.0) is None
