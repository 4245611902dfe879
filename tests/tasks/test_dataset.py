"""Step 1 of a job against real git + DVC repositories: references in, files of known content out."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
import yaml
from filelock import FileLock

from jobs.settings import Settings
from sft.errors import DatasetNotFound, InvalidConfig, InvalidDataset
from tasks.dataset import resolve
from tasks.dataset_registry import ensure_registry, git
from tasks.dataset_store import count_rows, hash_bytes, store_dataset
from tasks.dataset_version import DatasetVersion
from tasks.hub import store_splits

ROW = {"instruction": "Say hello.", "input": "", "output": "Hello."}


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A home with the default registry, shared by the tests that only read it."""
    settings = Settings(home=tmp_path_factory.mktemp("home"), dataset_registry=None)
    ensure_registry(settings)
    return settings


@pytest.fixture
def own_home(settings: Settings, tmp_path: Path) -> Settings:
    """A home of its own that reads the shared home's registry by path."""
    return Settings(home=tmp_path / "home", dataset_registry=str(settings.home / "registry"))


def run(folder: Path, *command: str) -> None:
    env = os.environ | {"DVC_NO_ANALYTICS": "1", "DVC_SITE_CACHE_DIR": str(folder.parent / "site")}
    subprocess.run(command, cwd=folder, env=env, check=True, capture_output=True, timeout=60)


def commit(folder: Path, message: str) -> None:
    run(folder, "git", "add", "--all")
    run(folder, "git", "-c", "user.name=A", "-c", "user.email=a@b.c", "commit", "--quiet", "--message", message)


def write_rows(path: Path, count: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(ROW) + "\n" for _ in range(count)), encoding="utf-8")


@pytest.fixture(scope="module")
def external(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Somebody's own registry: a folder under DVC, files under DVC one by one, a single file, and rows in git."""
    root = tmp_path_factory.mktemp("external")
    registry = root / "registry"
    registry.mkdir()
    dvc = (sys.executable, "-P", "-m", "dvc")
    run(registry, "git", "init", "--quiet", "--initial-branch=trunk")
    run(registry, *dvc, "init", "--quiet")
    run(registry, *dvc, "remote", "add", "--quiet", "--default", "store", str(root / "remote"))
    write_rows(registry / "folder/train.jsonl", 3)
    write_rows(registry / "singles/train.jsonl", 4)
    write_rows(registry / "singles/eval.jsonl", 1)
    (registry / "table.csv").write_text('prompt,completion\n"a\nb",c\nd,e\n', encoding="utf-8")
    run(registry, *dvc, "add", "--quiet", "folder", "singles/train.jsonl", "singles/eval.jsonl", "table.csv")
    write_rows(registry / "plain/train.jsonl", 2)
    commit(registry, "Datasets")
    run(registry, "git", "tag", "v1.0")
    run(registry, *dvc, "push", "--quiet", "--all-tags")
    return registry


def test_two_versions_have_their_own_content(settings: Settings) -> None:
    old, new = resolve("handbook@v1.0", settings), resolve("handbook@v1.1", settings)
    assert (old.name, old.revision, old.source, old.rows, new.rows) == ("handbook", "v1.0", "dvc", 250, 335)
    registry = settings.home / "registry"
    for version in (old, new):
        assert version.commit == git(registry, "rev-parse", f"{version.revision}^{{commit}}")
        lock = yaml.safe_load(git(registry, "show", f"{version.revision}:dvc.lock"))
        assert version.md5 == lock["stages"]["handbook"]["outs"][0]["md5"]
        assert version.train_file == settings.home / "datasets" / version.md5 / "train.jsonl"
        assert version.eval_file == version.train_file.with_name("eval.jsonl")
        assert len(version.train_file.read_text(encoding="utf-8").splitlines()) == version.rows
    assert old.md5 != new.md5


def test_a_version_has_many_names(settings: Settings) -> None:
    new = resolve("handbook@v1.1", settings)
    assert new.commit is not None
    for revision in ("main", new.commit, new.commit[:8]):
        assert resolve(f"handbook@{revision}", settings) == dataclasses.replace(new, revision=revision)
    assert resolve("handbook", settings) == dataclasses.replace(new, revision="main")


def test_an_evaluation_split_can_be_asked_for(settings: Settings) -> None:
    held_out = resolve("handbook@v1.1", settings, split="eval")
    assert (held_out.train_file.name, held_out.eval_file, held_out.rows) == ("eval.jsonl", None, 67)
    with pytest.raises(DatasetNotFound, match=r"has no test\.jsonl.*it has: eval\.jsonl, train\.jsonl"):
        resolve("handbook@v1.1", settings, split="test")


def test_what_is_on_this_machine_is_not_fetched_again(own_home: Settings) -> None:
    first = resolve("handbook@v1.0", own_home)
    written = first.train_file.stat()
    started = time.monotonic()
    assert resolve("handbook@v1.0", own_home) == first
    assert time.monotonic() - started < 30
    assert (first.train_file.stat().st_ino, first.train_file.stat().st_mode & 0o777) == (written.st_ino, 0o444)


def test_jobs_at_the_same_time_share_one_copy(tmp_path: Path) -> None:
    """Also the first use: four processes find no registry and build one."""
    settings = Settings(home=tmp_path, dataset_registry=None)
    with ProcessPoolExecutor(4, mp_context=get_context("spawn")) as pool:
        found = list(pool.map(resolve, ["handbook@v1.1"] * 4, [settings] * 4))
    assert found == [found[0]] * 4
    assert found[0].rows == 335
    assert [path.name for path in (tmp_path / "datasets").iterdir() if not path.name.endswith(".lock")] == [
        found[0].md5
    ]


def test_what_killed_jobs_left_of_another_dataset_goes_and_what_is_being_made_stays(tmp_path: Path) -> None:
    for name in ("killed.dir", "at_work"):
        (tmp_path / f".{name}.abcd1234").mkdir()
        (tmp_path / f".{name}.lock").touch()
    content = b'{"text": "a"}\n'
    with FileLock(tmp_path / ".at_work.lock"):
        stored = store_dataset(
            tmp_path, md5 := hash_bytes(content), {"a.jsonl": md5}, lambda _, path: path.write_bytes(content), "train"
        )
    assert stored.rows == 1
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {md5, ".at_work.abcd1234"}


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("handbok@v1.0", r"dataset handbok@v1\.0 is not in the registry .*; it has: handbook"),
        ("handbook@v9.9", r"revision v9\.9 is not in the dataset registry .*; tags: v1\.0, v1\.1; branches: main"),
        ("handbook@--all", r"revision --all is not in the dataset registry"),
        ("datasets@v1.0", r"the dataset has no train\.jsonl"),
        ("../registry@v1.0", r"dataset \.\./registry@v1\.0 is not in the registry"),
        ("/handbook@v1.0", r"dataset /handbook@v1\.0 is not in the registry"),
        ("handbook@", "dataset_name 'handbook@' is not of the form name@revision"),
        ("@v1.0", "dataset_name '@v1.0' is not of the form name@revision"),
    ],
)
def test_what_is_not_there_is_named(settings: Settings, reference: str, message: str) -> None:
    started = time.monotonic()
    with pytest.raises(DatasetNotFound, match=message):
        resolve(reference, settings)
    assert time.monotonic() - started < 40


def test_a_name_in_none_of_the_places_lists_them_all(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    started = time.monotonic()
    with pytest.raises(DatasetNotFound) as caught:
        resolve("someone/unknown", settings)
    assert time.monotonic() - started < 40
    message = str(caught.value)
    assert f"no file or folder {settings.data_root}/someone/unknown" in message
    assert "dataset someone/unknown@main is not in the registry" in message
    assert "the Hub returned no dataset someone/unknown" in message


@pytest.fixture
def damaged(settings: Settings, tmp_path: Path) -> tuple[Settings, Path]:
    """A copy of the registry that has lost its cache, so that all depends on a remote beside it."""
    for name in ("registry", "registry-remote"):
        shutil.copytree(settings.home / name, tmp_path / name)
    shutil.rmtree(tmp_path / "registry/.dvc/cache")
    (tmp_path / "registry/.dvc/config.local").unlink()  # it names the original's remote
    damaged = Settings(home=tmp_path / "home", dataset_registry=str(tmp_path / "registry"))
    return damaged, tmp_path / "registry-remote/files/md5"


def test_content_missing_in_the_remote_is_named(damaged: tuple[Settings, Path]) -> None:
    settings, remote = damaged
    lock = yaml.safe_load(git(remote.parents[2] / "registry", "show", "v1.0:dvc.lock"))
    md5 = lock["stages"]["handbook"]["outs"][0]["md5"]
    files = {entry["relpath"]: entry["md5"] for entry in json.loads((remote / md5[:2] / md5[2:]).read_text())}
    lost = remote / files["train.jsonl"][:2] / files["train.jsonl"][2:]
    kept = lost.read_bytes()

    lost.unlink()
    with pytest.raises(DatasetNotFound, match=rf"train\.jsonl \(md5 {files['train.jsonl']}\) .*dvc push --all-tags"):
        resolve("handbook@v1.0", settings)

    lost.write_bytes(kept + b"\n")
    with pytest.raises(
        InvalidDataset, match=rf"train\.jsonl has md5 \w+, the registry recorded {files['train.jsonl']}"
    ):
        resolve("handbook@v1.0", settings)

    lost.write_bytes(kept)
    assert resolve("handbook@v1.0", settings).rows == 250

    shutil.rmtree(settings.home / "datasets")
    (remote / md5[:2] / md5[2:]).unlink()
    with pytest.raises(DatasetNotFound, match=rf"the list of files {md5} is missing .*dvc push --all-tags"):
        resolve("handbook@v1.0", settings)


def resolve_all(settings: Settings) -> dict[str, DatasetVersion]:
    return {name: resolve(f"{name}@v1.0", settings) for name in ("folder", "singles", "table", "table.csv", "plain")}


@pytest.mark.parametrize("address", ["path", "file", "bare"])
def test_an_external_registry_is_read_by_path_and_by_url(external: Path, tmp_path: Path, address: str) -> None:
    if address == "bare":
        subprocess.run(["git", "clone", "--quiet", "--bare", str(external), str(tmp_path / "bare.git")], check=True)
    named = {"path": str(external), "file": external.as_uri(), "bare": str(tmp_path / "bare.git")}[address]
    settings = Settings(home=tmp_path / "home", dataset_registry=named)
    found = resolve_all(settings)
    assert {name: version.rows for name, version in found.items()} == {
        "folder": 3,
        "singles": 4,
        "table": 2,
        "table.csv": 2,
        "plain": 2,
    }
    assert {version.url for version in found.values()} == {named}
    assert found["folder"].eval_file is None
    assert found["singles"].eval_file is not None
    assert resolve_all(settings) == found
    with pytest.raises(DatasetNotFound, match="it has: folder, plain, singles, table"):
        resolve("other@v1.0", settings)
    assert resolve("folder@trunk", settings).md5 == found["folder"].md5
    assert not (settings.home / "registry").exists()


def test_reading_an_external_registry_leaves_it_unchanged(external: Path, tmp_path: Path) -> None:
    def look() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in external.rglob("*")}

    before = look()
    resolve("folder@v1.0", Settings(home=tmp_path, dataset_registry=str(external)))
    assert look() == before


def test_a_folder_that_is_no_repository_is_named(tmp_path: Path) -> None:
    (tmp_path / "registry").mkdir()
    with pytest.raises(DatasetNotFound, match="not a git repository"):
        resolve("handbook@v1.0", Settings(home=tmp_path, dataset_registry=str(tmp_path / "registry")))


def test_a_file_or_folder_below_the_data_root_is_used_where_it_is(own_home: Settings) -> None:
    write_rows(own_home.data_root / "team/notes.jsonl", 7)
    found = resolve("team/notes.jsonl", own_home)
    assert found == DatasetVersion(
        name="team/notes.jsonl",
        revision=None,
        commit=None,
        md5=found.md5,
        train_file=own_home.data_root / "team/notes.jsonl",
        eval_file=None,
        rows=7,
        source="file",
        url=(own_home.data_root / "team/notes.jsonl").as_uri(),
    )
    assert resolve(str(own_home.data_root / "team/notes.jsonl"), own_home).md5 == found.md5

    assert found.advise() == found.advise("notes") == []
    assert found.advise("test")[0][1].startswith("dataset_split 'test' has no effect: the dataset is the single file")

    (own_home.data_root / "set").mkdir()
    (own_home.data_root / "set/train.json").write_text(json.dumps([ROW] * 5), encoding="utf-8")
    write_rows(own_home.data_root / "set/eval.jsonl", 2)
    folder = resolve("set", own_home)
    assert (folder.rows, folder.eval_file) == (5, own_home.data_root / "set/eval.jsonl")


@pytest.mark.parametrize("name", ["validation.jsonl", "valid.csv", "test.jsonl"])
def test_a_folder_holds_out_as_a_dataset_of_the_hub_does(own_home: Settings, name: str) -> None:
    folder = own_home.data_root / "set"
    write_rows(folder / "train.jsonl", 5)
    write_rows(folder / name, 2)
    write_rows(folder / "train-more.jsonl", 2)
    found = resolve("set", own_home)
    assert (found.eval_file, found.unused) == (folder / name, ("train-more.jsonl",))
    assert found.advise() == [
        (
            "unused_files",
            f"not used: train-more.jsonl (training uses train.jsonl; held out is {name})",
        )
    ]


def test_pointers_and_archives_in_place_of_rows_are_refused(own_home: Settings, tmp_path: Path) -> None:
    registry = tmp_path / "registry"
    (registry / "sales").mkdir(parents=True)
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "ab" * 32 + "\nsize 1234567\n"
    (registry / "sales/train.jsonl").write_text(pointer)
    (registry / "sales/info.json").write_text("{}")
    run(registry, "git", "init", "--quiet", "--initial-branch=main")
    commit(registry, "Rows")
    settings = Settings(home=tmp_path / "own", dataset_registry=str(registry))
    with pytest.raises(InvalidDataset, match=r"^train\.jsonl is a Git LFS pointer, not the data; run `git lfs pull`$"):
        resolve("sales@main", settings)
    own_home.data_root.mkdir(parents=True)
    for name in ("rows.jsonl", "rows.parquet"):
        (own_home.data_root / name).write_text(pointer)
        with pytest.raises(InvalidDataset, match="is a Git LFS pointer"):
            resolve(name, own_home)
    (own_home.data_root / "rows.jsonl.bz2").write_bytes(b"BZh")
    with pytest.raises(InvalidDataset, match=r"dataset file rows\.jsonl\.bz2 is compressed; unpack it first"):
        resolve("rows.jsonl.bz2", own_home)


def test_a_file_of_other_json_beside_the_rows_does_no_harm(tmp_path: Path) -> None:
    registry = tmp_path / "registry"
    write_rows(registry / "sales/train.jsonl", 2)
    (registry / "sales/info.json").write_text('{"license": "mit"}')
    run(registry, "git", "init", "--quiet", "--initial-branch=main")
    commit(registry, "Rows")
    found = resolve("sales@main", Settings(home=tmp_path / "own", dataset_registry=str(registry)))
    assert (found.rows, found.unused) == (2, ("info.json",))


def test_a_dataset_in_parts_has_the_rows_of_all(own_home: Settings, tmp_path: Path) -> None:
    registry = tmp_path / "registry"
    for folder in (own_home.data_root / "sales", registry / "sales"):
        for number in range(3):
            write_rows(folder / f"train-{number:05}-of-00003.jsonl", number + 1)
        write_rows(folder / "test-00000-of-00002.jsonl", 1)
        write_rows(folder / "test-00001-of-00002.jsonl", 1)
    run(registry, "git", "init", "--quiet", "--initial-branch=main")
    commit(registry, "Rows")
    stored = resolve("sales@main", Settings(home=tmp_path / "own", dataset_registry=str(registry)))
    local = resolve("sales", own_home)
    for found in (stored, local):
        assert (found.rows, found.unused, found.advise()) == (6, (), [])
        assert found.train_file.name == "train-00000-of-00003.jsonl"
        assert found.eval_file == found.train_file.with_name("test-00000-of-00002.jsonl")
        assert count_rows(found.eval_file) == 2
    last = own_home.data_root / "sales/train-00002-of-00003.jsonl"
    write_rows(last, 9)
    assert (resolve("sales", own_home).rows, resolve("sales", own_home).md5 != local.md5) == (12, True)
    write_rows(tmp_path / "outside.jsonl", 1)
    last.unlink()
    last.symlink_to(tmp_path / "outside.jsonl")
    with pytest.raises(InvalidConfig, match=r"train-00002-of-00003\.jsonl is a link that leads outside"):
        resolve("sales", own_home)
    last.unlink()
    with pytest.raises(InvalidDataset, match=r"is one of 3 parts, of which train-00002-of-00003\.jsonl is missing"):
        resolve("sales", own_home)


@pytest.mark.parametrize("reference", ["../secret.jsonl", "/etc/hostname", "set/../../secret.jsonl", "link.jsonl"])
def test_a_path_outside_the_data_root_is_refused(own_home: Settings, reference: str) -> None:
    write_rows(own_home.home / "secret.jsonl", 1)
    own_home.data_root.mkdir(parents=True)
    (own_home.data_root / "link.jsonl").symlink_to(own_home.home / "secret.jsonl")
    with pytest.raises(InvalidConfig, match="leads outside the data root"):
        resolve(reference, own_home)


def test_a_link_inside_a_dataset_folder_cannot_lead_out_of_it(own_home: Settings) -> None:
    write_rows(own_home.home / "secret.jsonl", 1)
    (own_home.data_root / "set").mkdir(parents=True)
    (own_home.data_root / "set/train.jsonl").symlink_to(own_home.home / "secret.jsonl")
    with pytest.raises(InvalidConfig, match="is a link that leads outside"):
        resolve("set", own_home)


def test_files_that_cannot_be_read_are_refused(own_home: Settings) -> None:
    own_home.data_root.mkdir(parents=True)
    (own_home.data_root / "rows.json").write_text('[{"instruction": ', encoding="utf-8")
    with pytest.raises(InvalidDataset, match=r"rows\.json can't be read as json"):
        resolve("rows.json", own_home)
    (own_home.data_root / "rows.parquet").write_bytes(b"no parquet")
    with pytest.raises(InvalidDataset, match=r"rows\.parquet can't be read as parquet"):
        resolve("rows.parquet", own_home)
    (own_home.data_root / "rows.txt").write_text("text", encoding="utf-8")
    with pytest.raises(InvalidDataset, match=r"rows\.txt must end in one of \.jsonl, \.json, \.parquet, \.csv"):
        resolve("rows.txt", own_home)


def test_a_dataset_of_the_hub_becomes_files_in_the_store(tmp_path: Path) -> None:
    """Without the network part: what `load_dataset` returns, stored twice with the same name."""
    from datasets import Dataset, DatasetDict

    splits = DatasetDict(train=Dataset.from_list([ROW] * 6), validation=Dataset.from_list([ROW] * 2))
    stored = store_splits(splits, tmp_path, "train")
    assert (stored.rows, stored.train_file.name, stored.eval_file) == (
        6,
        "train.parquet",
        tmp_path / stored.md5 / "eval.parquet",
    )
    assert store_splits(splits, tmp_path, "train") == stored
    with pytest.raises(DatasetNotFound, match="has no split test; it has: train, validation"):
        store_splits(splits, tmp_path, "test")


@pytest.mark.parametrize(
    ("splits", "split", "rows", "held_out"),
    [
        ({"train": 6, "eval": 3, "validation": 2}, "eval", 3, ("validation.parquet", 2)),
        ({"train": 6, "eval": 3, "validation": 2}, "validation", 2, ("eval.parquet", 3)),
        ({"train": 6, "test": 3}, "train", 6, ("eval.parquet", 3)),
        ({"train": 6, "test": 3}, "test", 3, None),
        ({"train_sft": 6, "test_sft": 3, "test_gen": 2}, "train_sft", 6, ("eval.parquet", 3)),
    ],
)
def test_a_split_of_the_hub_is_never_its_own_held_out_one(
    tmp_path: Path, splits: dict[str, int], split: str, rows: int, held_out: tuple[str, int] | None
) -> None:
    from datasets import Dataset, DatasetDict

    made = DatasetDict({name: Dataset.from_list([ROW] * count) for name, count in splits.items()})
    stored = store_splits(made, tmp_path, split)
    assert (stored.rows, stored.train_file.name) == (rows, f"{split}.parquet")
    assert (stored.eval_file and (stored.eval_file.name, count_rows(stored.eval_file))) == held_out


@pytest.mark.parametrize(
    ("name", "content", "rows"),
    [
        ("a.jsonl", b'{"a": 1}\n{"a": \n\n{"a": "\xff"}\n', 3),
        ("a.json", b'{"a": 1}\n{"a": \n{"a": 2}\n', 3),
        ("a.json", b"[1, 2]", 2),
        ("a.csv", b'a,b\n1\n"x"y,2\n\n"three\nlines",\xff\n' + b"x" * 200_000 + b",2\n", 4),
    ],
)
def test_rows_that_cannot_be_read_do_not_hide_the_others(
    own_home: Settings, name: str, content: bytes, rows: int
) -> None:
    """What becomes of each is told when they are tokenized."""
    own_home.data_root.mkdir(parents=True)
    (own_home.data_root / name).write_bytes(content)
    assert resolve(name, own_home).rows == rows
