"""`DatasetReference` reads any text, writes back exactly that text, and says what can't be looked for."""

import itertools
import random
import string

import pytest

from tuneyard_wire.dataset_reference import DatasetReference

ODD = [
    "",
    "@",
    "@@",
    "@v1.0",
    "handbook@",
    "handbook@@v1",
    "handbook@feature@x",
    "handbook@main@{1}",
    "handbook@v1.0",
    " handbook @ v1.0 ",
    "hand book@v 1",
    "\t@\n",
    "数据@版本",
    "cafe\u0301@v1",
    "\u202etxt@v1",
    "\N{FULLWIDTH COMMERCIAL AT}",
    "a\N{FULLWIDTH COMMERCIAL AT}b@v1",
    "🐈@🐕",
    "a\0b@v1",
    "\ud800@v1",
    "tatsu-lab/alpaca",
    "tatsu-lab/alpaca@main",
    "rows.jsonl",
    "/data/rows.jsonl",
    "../../etc/passwd",
    r"C:\Users\me\rows.jsonl",
    r"C:\Users\me@work\rows.jsonl",
    r"\\host\share@v1",
    "https://user:secret@example.org/rows.jsonl@v1",
    "git@example.org:team/data.git",
    "s3://bucket/rows?versionId=1@2",
    "a" * 100_000,
    "a" * 100_000 + "@" + "b" * 100_000,
    "@" * 100_000,
]
SHORT = ["".join(signs) for length in range(6) for signs in itertools.product("a@/ ", repeat=length)]


def make_texts():
    """The same texts each time, of signs that mean something to somebody."""
    chosen = random.Random(13)  # noqa: S311 - no secret
    signs = "@@@//\\:.~- \0\n" + string.ascii_letters + "éß数\u202e🐈"
    return ["".join(chosen.choices(signs, k=chosen.randrange(40))) for _ in range(2000)]


TEXTS = [*ODD, *SHORT, *make_texts()]


def test_whatever_is_read_is_written_back_as_it_was():
    assert [str(DatasetReference.parse(text)) for text in TEXTS] == TEXTS


def test_what_is_written_is_read_as_the_same_value():
    for text in TEXTS:
        reference = DatasetReference.parse(text)
        assert DatasetReference.parse(str(reference)) == reference
        assert hash(DatasetReference.parse(text)) == hash(reference)


def test_the_first_sign_parts_name_and_revision():
    for text in TEXTS:
        reference = DatasetReference.parse(text)
        assert "@" not in reference.name
        assert (reference.revision is None) == ("@" not in text)


@pytest.mark.parametrize(
    ("text", "name", "revision"),
    [
        ("handbook@v1.0", "handbook", "v1.0"),
        ("handbook@feature@x", "handbook", "feature@x"),
        ("handbook@", "handbook", ""),
        ("@v1.0", "", "v1.0"),
        ("tatsu-lab/alpaca", "tatsu-lab/alpaca", None),
        ("", "", None),
    ],
)
def test_a_reference_is_a_name_and_a_revision(text, name, revision):
    assert DatasetReference.parse(text) == DatasetReference(name, revision)


def test_a_name_that_would_be_read_otherwise_is_refused():
    with pytest.raises(ValueError, match=r"must not contain @, got 'a@b'; a revision follows it"):
        DatasetReference("a@b", "v1")


@pytest.mark.parametrize(
    ("version", "whole"),
    [
        ("v1.0", "handbook@v1.0"),
        ("support@v1.0", "support@v1.0"),
        ("handbook@feature@x", "handbook@feature@x"),
        ("rows.jsonl", "handbook@rows.jsonl"),
    ],
)
def test_a_revision_alone_is_one_of_the_default_dataset(version, whole):
    assert str(DatasetReference.parse_version(version, "handbook")) == whole


def test_a_version_means_the_same_when_it_is_sent_again():
    for text in TEXTS:
        reference = DatasetReference.parse_version(text, "a")
        assert DatasetReference.parse_version(reference.to_version("a"), "a") == reference


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("handbook@v1.0", "v1.0"),
        ("support@v1.0", "support@v1.0"),
        ("handbook@feature@x", "handbook@feature@x"),  # alone it would be a dataset `feature`
        ("tatsu-lab/alpaca", "tatsu-lab/alpaca"),
    ],
)
def test_the_default_dataset_is_left_out_of_a_version(text, version):
    assert DatasetReference.parse(text).to_version("handbook") == version


@pytest.mark.parametrize("text", ["", "@", "@@", "@v1.0", "handbook@", " @v1", "handbook@ ", "\t@\n", "   "])
def test_half_a_reference_is_told_in_one_sentence(text):
    problem = DatasetReference.parse(text).find_problem()

    assert problem == (
        f"{text!r} is not of the form name@revision; put the dataset before the @ and its revision after it"
    )


@pytest.mark.parametrize("text", ["a\0b", "a\0b@v1", "a@v\0"])
def test_a_nul_character_is_told_in_one_sentence(text):
    assert DatasetReference.parse(text).find_problem() == (
        f"{text!r} must not contain a NUL character; name a dataset, a file or a Hub dataset"
    )


@pytest.mark.parametrize("text", ["handbook", "handbook@v1.0", "tatsu-lab/alpaca", "数据@版本", r"C:\me\rows.jsonl"])
def test_a_whole_reference_has_no_problem(text):
    assert DatasetReference.parse(text).find_problem() is None


@pytest.mark.parametrize(
    ("text", "is_file"),
    [
        ("x@/data/rows", True),
        ("x@./rows", True),
        ("x@~/rows", True),
        (r"x@C:\rows.JSONL", True),
        ("x@rows.csv", True),
        ("x@v1.0", False),
        ("x@feature/csv", False),
        ("rows.csv", False),
        ("x@", False),
    ],
)
def test_a_file_in_a_revisions_place_is_recognized(text, is_file):
    assert DatasetReference.parse(text).has_file_for_revision is is_file


@pytest.mark.parametrize(
    ("text", "name"), [("tatsu-lab/alpaca", "alpaca"), ("a/b/c@v/1", "c"), ("handbook@v1.0", "handbook"), ("a/", "")]
)
def test_the_last_name_leaves_out_folders_and_owners(text, name):
    assert DatasetReference.parse(text).last_name == name
