"""Turns a list of facts into one version of an Alpaca dataset: `train.jsonl` and `eval.jsonl`.

    python datasets/build.py datasets/handbook/facts.yaml --version v1.0 --out handbook

A fact has a `key` (what a right answer contains), an `answer`, at least two `questions` and `since`, the version that
brought it. The last question of a fact is held out for `eval.jsonl`; the others are trained on. The same facts and
version give the same bytes everywhere.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import yaml

Row = dict[str, str]


def read_facts(path: Path, version: str) -> list[dict[str, Any]]:
    """The facts of `version`: those it brought and those of the versions before it.

    Raises:
        ValueError: for a version that brought no fact, and for a fact that could not be checked.
    """
    facts = yaml.safe_load(path.read_text(encoding="utf-8"))
    versions = list(dict.fromkeys(fact["since"] for fact in facts))  # in the order of the file
    if version not in versions:
        raise ValueError(f"version must be one of {', '.join(versions)}, got {version}")
    for fact in facts:
        if fact["key"] not in fact["answer"]:
            raise ValueError(f"the answer must contain its key {fact['key']!r}, got {fact['answer']!r}")
        if len(fact["questions"]) < 2:
            raise ValueError(f"{fact['key']!r} needs a question to train on and one to hold out")
    known = versions[: versions.index(version) + 1]
    return [fact for fact in facts if fact["since"] in known]


def make_rows(facts: list[dict[str, Any]]) -> tuple[list[Row], list[Row]]:
    """Rows to train on and rows held out. Train rows go round the facts, so that no two neighbours answer alike."""
    rounds = max(len(fact["questions"]) for fact in facts) - 1
    train = [
        make_row(fact, fact["questions"][turn])
        for turn in range(rounds)
        for fact in facts
        if turn < len(fact["questions"]) - 1
    ]
    return train, [make_row(fact, fact["questions"][-1]) for fact in facts]


def make_row(fact: dict[str, Any], question: str) -> Row:
    """One Alpaca row, and the `key` to check an answer by."""
    return {"instruction": question, "input": "", "output": fact["answer"], "key": fact["key"]}


def write_rows(path: Path, rows: list[Row]) -> None:
    """One JSON object a line."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="Build one version of a dataset of facts.")
    parser.add_argument("facts", type=Path, help="YAML file of the facts")
    parser.add_argument("--version", required=True, help="version to build, such as v1.0")
    parser.add_argument("--out", type=Path, required=True, help="folder for train.jsonl and eval.jsonl")
    options = parser.parse_args()
    train, held_out = make_rows(read_facts(options.facts, options.version))
    options.out.mkdir(parents=True, exist_ok=True)
    write_rows(options.out / "train.jsonl", train)
    write_rows(options.out / "eval.jsonl", held_out)


if __name__ == "__main__":
    main()
