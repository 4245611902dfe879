"""Files by their ids: what a job's configuration names by one, and names of datasets for any file."""

import hashlib
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest

from jobs.own_data.registry import OwnRegistry
from jobs.own_data.staging import staging_folder
from jobs.service.data_adder import DataAdder, NewFile
from jobs.service.files import StoredFile, add_file, find_file, list_files, replace_ids, settle_config
from jobs.settings import Settings
from sft.config import SFTConfig
from sft.errors import DatasetNotFound, InvalidConfig, InvalidDataset
from tests.jobs.own_data.rows import rows

MINE, THEIRS = UUID(int=1), UUID(int=2)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return Settings(home=tmp_path_factory.mktemp("files") / "state")


def add(settings: Settings, content: bytes, filename: str, owner: UUID | None = None) -> StoredFile:
    with staging_folder(settings.home) as folder:
        path = folder / "content"
        path.write_bytes(content)
        return add_file(DataAdder(), NewFile(path, filename, owner=owner), settings, lambda: False, "")


def make_config(**values: object) -> SFTConfig:
    return SFTConfig.from_dict({"base_model": "m", "dataset_format": "auto", "dataset_name": "handbook@v1.0"} | values)


@pytest.fixture(scope="module")
def file(settings: Settings) -> StoredFile:
    return add(settings, rows("a"), "support.jsonl", MINE)


def test_an_id_is_that_of_a_version_wherever_it_stands(settings: Settings, file: StoredFile) -> None:
    other = add(settings, rows("b"), "other.jsonl", MINE)
    for given, meant in (
        (file.id, "support@v1"),
        (f"handbook@{file.id}", "support@v1"),  # as `dataset_version` alone is completed
        ("support", "support"),
    ):
        assert replace_ids(make_config(dataset_name=given), settings, MINE).dataset_name == meant
    mixed = make_config(
        dataset_name=[{"name": file.id, "weight": 2.0}, "handbook@v1.0"], validation_dataset=[other.id, "support"]
    )
    named = replace_ids(mixed, settings, MINE)
    assert [(one.name, one.weight) for one in named.sources] == [("support@v1", 2.0), ("handbook@v1.0", 1.0)]
    assert named.validation_dataset == ("other@v1", "support")
    plain = make_config()
    assert replace_ids(plain, settings, MINE) is plain


def test_two_names_of_one_version_are_refused(settings: Settings, file: StoredFile) -> None:
    twin = add(settings, rows("a"), "twin.jsonl", MINE)
    for first, second in (("support@v1", "support@main"), ("support", "support@v1"), (file.id, "support@main")):
        for field in ("dataset_name", "validation_dataset"):
            config = make_config(**{field: ["handbook@v1.1", first, second]})
            with pytest.raises(InvalidConfig, match=rf"^{field}\.2: '{second}' is the same content as"):
                settle_config(config, settings, MINE)
    with pytest.raises(InvalidConfig, match="'twin@v1' is the same content as 'support@v1'"):
        settle_config(make_config(dataset_name=[file.id, twin.id]), settings, MINE)
    apart = make_config(dataset_name=["support@v1", "other@v1"], validation_dataset=["support@v1", "nothing@v1"])
    assert settle_config(apart, settings, MINE) == apart


def test_an_id_that_no_file_of_the_owner_has_is_not_found(settings: Settings, file: StoredFile) -> None:
    for owner, file_id in ((THEIRS, file.id), (MINE, f"file-{'0' * 24}")):
        with pytest.raises(DatasetNotFound, match=file_id):
            replace_ids(make_config(dataset_name=file_id), settings, owner)


def test_the_same_version_twice_in_a_list_is_refused(settings: Settings, file: StoredFile) -> None:
    with pytest.raises(InvalidConfig, match="dataset_name: must name each dataset once, 'support@v1'"):
        replace_ids(make_config(dataset_name=[file.id, "support@v1"]), settings, MINE)


def test_a_file_that_can_not_be_read_is_known_and_no_job_can_use_it(settings: Settings) -> None:
    broken = add(settings, b'{"instruction": "a"\n', "broken.jsonl", MINE)
    assert broken.version is None
    assert broken.problem
    assert find_file(settings, broken.id, MINE) == broken
    assert add(settings, b'{"instruction": "a"\n', "broken.jsonl", MINE).id == broken.id
    with pytest.raises(InvalidDataset, match=f"validation_dataset: file {broken.id} can't be used: "):
        replace_ids(make_config(validation_dataset=broken.id), settings, MINE)
    with pytest.raises(DatasetNotFound):
        find_file(settings, broken.id, THEIRS)
    assert OwnRegistry(settings.home).list_versions("broken") == []


@pytest.mark.parametrize(
    ("filename", "name", "suffix"),
    [
        ("upload", "upload", ".jsonl"),
        ("数据.jsonl", "file-DIGEST", ".jsonl"),
        ("数据 2024.jsonl", "2024-DIGEST", ".jsonl"),
        (f"{'é' * 3}{'x' * 300}.jsonl", f"{'x' * 91}-DIGEST", ".jsonl"),
        ("../../etc/passwd", "passwd", ".jsonl"),
        ("my rows.txt", "my-rows.txt", ".jsonl"),
        ("a@b.JSONL", "a-b", ".jsonl"),
        (f"file-{'0' * 24}.jsonl", "file-DIGEST", ".jsonl"),
        ("uploads.jsonl", "file-DIGEST", ".jsonl"),
        ("x-00000-of-00002.jsonl", "x-00000-of-00002-file", ".jsonl"),  # not one part of several
        ("x-00000-of-00002.rows.jsonl", "file-DIGEST", ".jsonl"),
        ("x" * 300, "x" * 100, ".jsonl"),
        ("handbook.jsonl", f"handbook-{THEIRS.hex[:8]}", ".jsonl"),  # a dataset of the registry
    ],
)
def test_any_name_of_a_file_makes_a_dataset(settings: Settings, filename: str, name: str, suffix: str) -> None:
    added = add(settings, rows(filename[:50]), filename, THEIRS)
    assert added.version is not None
    digest = hashlib.sha256(filename.encode()).hexdigest()[:8]  # of names that say more than a dataset's can
    assert (added.version.name, added.version.suffix) == (name.replace("DIGEST", digest), suffix)
    assert find_file(settings, added.id) == added


def test_a_long_name_of_a_file_is_kept_with_its_suffix(settings: Settings) -> None:
    filename = "y" * 900 + ".csv"
    added = add(settings, b"prompt,completion\na,b\n", filename)
    assert added.version is not None
    assert (added.filename, added.version.suffix, added.version.rows) == (filename, ".csv", 1)


def test_keys_may_have_files_of_one_name(settings: Settings, file: StoredFile) -> None:
    theirs = add(settings, rows("a"), "support.jsonl", THEIRS)
    assert theirs.version is not None
    assert str(theirs.version.reference) == f"support-{THEIRS.hex[:8]}@v1"
    assert add(settings, rows("a"), "support.jsonl", THEIRS) == theirs
    assert add(settings, rows("a"), "support.jsonl", MINE).id == file.id
    nobodys = add(settings, rows("a"), "support.jsonl")
    assert nobodys.version is not None
    assert nobodys.version.name == "support-file"
    assert {one.id for one in list_files(settings, THEIRS)} & {file.id, nobodys.id} == set()
    assert {file.id, theirs.id, nobodys.id} <= {one.id for one in list_files(settings)}


def test_rows_that_are_left_out_are_told(settings: Settings) -> None:
    added = add(settings, rows("a") + b"[1]\n", "half.jsonl", MINE)
    assert added.problem == "1 of 2 rows can't be used and are left out; row 2: must be an object, got [1]"


def test_a_file_that_is_refused_leaves_nothing(settings: Settings, tmp_path: Path) -> None:
    broken = add(settings.model_copy(update={"home": tmp_path}), b"", "empty.jsonl")
    assert replace(broken, problem=None).version is None
    left = [path for path in (tmp_path / "own-data").rglob("*") if path.is_file() and "registry" not in path.parts]
    assert [path.name for path in left] in ([f"{broken.id}.json"], [f"{broken.id}.json", "lock"])


def test_long_names_in_another_script_are_datasets_of_their_own_also_where_others_have_them(settings: Settings) -> None:
    filenames = [f"{'y' * 100}{letter}.jsonl" for letter in "éè"]
    for number, owner in enumerate((MINE, THEIRS)):
        added = [add(settings, rows(f"{number}{filename}"), filename, owner) for filename in filenames]
        versions = [file.version for file in added if file.version is not None]
        assert len({version.name for version in versions}) == 2
        assert [version.number for version in versions] == [1, 1]
