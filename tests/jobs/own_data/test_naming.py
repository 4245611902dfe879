"""Names of added datasets: what is accepted, and what is made of a file's name."""

import subprocess

import pytest

from jobs.own_data.naming import check_name, find_suffix, name_after, read_version
from sft.errors import InvalidConfig

HOSTILE = [
    *(
        "",
        ".",
        "..",
        "../x",
        "a/b",
        "a\\b",
        "/etc/passwd",
        "-rf",
        ".hidden",
        "a b",
        "a@v1",
        "é",
        "a\n",
        "a\0",
        "x" * 101,
    ),
    *("a..b", "a.lock", "a.", "data.jsonl", "data.JSONL.GZ", "~root", "a:b", "refs/heads/main", "a{b", "a*", "$(id)"),
]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_refused(name):
    with pytest.raises(InvalidConfig, match="name must"):
        check_name(name)


@pytest.mark.parametrize("name", ["a", "Support-2026.v2_x", "x" * 100, "0"])
def test_a_valid_name_is_one_of_a_git_tag(name):
    assert check_name(name) == name
    subprocess.run(["git", "check-ref-format", f"refs/tags/{name}@v1"], check=True)


@pytest.mark.parametrize(
    ("filename", "name"),
    [
        ("data.jsonl", "data"),
        ("My Data (final).JSONL", "My-Data-final"),
        ("C:\\Users\\me\\rows.csv", "rows"),
        ("../../etc/passwd.json", "passwd"),
        ("a..b.jsonl.gz", "a.b"),
        ("x" * 300 + ".jsonl", "x" * 100),
    ],
)
def test_a_name_is_made_of_the_files(filename, name):
    assert name_after(filename) == name


@pytest.mark.parametrize("filename", ["", ".jsonl", "数据.jsonl", "---.csv"])
def test_a_file_of_whose_name_none_can_be_made_needs_one(filename):
    with pytest.raises(InvalidConfig, match="give one"):
        name_after(filename)


def test_only_data_files_have_a_suffix_that_is_known():
    assert find_suffix("a.JSONL.gz") == ".jsonl.gz"
    with pytest.raises(InvalidConfig, match="must end in one of"):
        find_suffix("a.zip")


@pytest.mark.parametrize(("text", "number"), [("v1", 1), ("v12", 12), ("v0", None), ("v01", None), ("1", None)])
def test_versions_are_numbered_from_one(text, number):
    assert read_version(text) == number
