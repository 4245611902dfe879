"""The dataset registry, built with the real git and DVC."""

import shutil
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from jobs.settings import PROJECT_ROOT, Settings
from sft.errors import DatasetNotFound, StackError
from tasks.dataset_registry import build_registry, ensure_registry, git


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the recipe and its sources, free to be changed."""
    project = tmp_path_factory.mktemp("project")
    shutil.copytree(PROJECT_ROOT / "datasets", project / "datasets", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copyfile(PROJECT_ROOT / "dvc.yaml", project / "dvc.yaml")
    return project


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, project: Path) -> Path:
    home = tmp_path_factory.mktemp("home")
    build_registry(home, project)
    return home


def read_commits(registry: Path) -> dict[str, str]:
    return {name: git(registry, "rev-parse", name) for name in ("v1.0", "v1.1", "main", "HEAD")}


def test_two_builds_give_the_same_commits(home: Path, project: Path, tmp_path: Path) -> None:
    commits = read_commits(home / "registry")
    assert commits["v1.0"] != commits["v1.1"] == commits["main"] == commits["HEAD"]
    assert read_commits(build_registry(tmp_path / "elsewhere" / "deep", project)) == commits


def test_a_built_registry_is_clean_and_is_not_built_again(home: Path, project: Path) -> None:
    assert git(home / "registry", "status", "--porcelain") == ""
    before = (home / "registry").stat().st_ino
    seconds = []
    for _ in range(5):
        started = time.monotonic()
        assert build_registry(home, project) == home / "registry"
        seconds.append(time.monotonic() - started)
    assert min(seconds) < 0.5
    assert (home / "registry").stat().st_ino == before
    assert sorted(path.name for path in home.iterdir()) == ["registry", "registry-remote", "registry.lock"]


def test_the_remote_holds_every_version(home: Path) -> None:
    for version in ("v1.0", "v1.1"):
        lock = yaml.safe_load(git(home / "registry", "show", f"{version}:dvc.lock"))
        md5 = lock["stages"]["handbook"]["outs"][0]["md5"]
        assert (home / "registry-remote/files/md5" / md5[:2] / md5[2:]).is_file()


def test_changed_sources_build_the_registry_anew(project: Path, tmp_path: Path) -> None:
    changed = tmp_path / "project"
    shutil.copytree(project, changed)
    (changed / "datasets/params.yaml").write_text("{version: v1.0, versions: [v1.0]}", encoding="utf-8")
    home = tmp_path / "home"

    def build() -> str:
        return git(build_registry(home, changed), "rev-parse", "v1.0")

    before = build()
    (changed / "datasets/README.md").write_text("Another text.", encoding="utf-8")
    assert build() == before
    facts = changed / "datasets/handbook/facts.yaml"
    facts.write_text(facts.read_text(encoding="utf-8").replace("on port 4200", "on the port 4200"), encoding="utf-8")
    assert build() != before
    assert sorted(path.name for path in home.iterdir()) == ["registry", "registry-remote", "registry.lock"]


def test_a_recipe_that_fails_says_where_and_leaves_no_registry(project: Path, tmp_path: Path) -> None:
    broken = tmp_path / "project"
    shutil.copytree(project, broken)
    (broken / "datasets/build.py").write_text("raise SystemExit('no rows today')", encoding="utf-8")
    with pytest.raises(StackError, match=r"dvc repro --quiet: (.|\n)*no rows today"):
        build_registry(tmp_path / "home", broken)
    assert not (tmp_path / "home/registry").exists()


def test_a_registry_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetNotFound, match="dataset_registry /nowhere/at/all does not exist"):
        ensure_registry(Settings(home=tmp_path, dataset_registry="/nowhere/at/all"))


def test_an_unreachable_registry_fails_within_seconds(tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(DatasetNotFound, match="git ls-remote failed on the dataset registry"):
        ensure_registry(Settings(home=tmp_path, dataset_registry="http://127.0.0.1:9/registry.git"))
    assert time.monotonic() - started < 40


def test_a_mirror_follows_its_registry(home: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    subprocess.run(["git", "clone", "--quiet", str(home / "registry"), str(source)], check=True)
    # Any URL goes through the mirror but for file://, so one is made with git's own rewriting of addresses.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GIT_CONFIG_COUNT", "1")
        patch.setenv("GIT_CONFIG_KEY_0", f"url.{source}.insteadOf")
        patch.setenv("GIT_CONFIG_VALUE_0", "https://registry.invalid/data.git")
        settings = Settings(home=tmp_path / "home", dataset_registry="https://registry.invalid/data.git")
        mirror = ensure_registry(settings)
        assert git(mirror, "tag", "--list").split() == ["v1.0", "v1.1"]
        git(source, "tag", "v2.0", "v1.1")
        assert ensure_registry(settings) == mirror
        assert git(mirror, "tag", "--list").split() == ["v1.0", "v1.1", "v2.0"]
