"""The Dockerfile: linted, and every file that its steps name is there."""

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from jobs.project import PROJECT_ROOT
from jobs.stack import job_templates

LINTER = Path(sys.executable).parent / "hadolint"
DOCKERFILE = (PROJECT_ROOT / "Dockerfile").read_text(encoding="utf-8")
PROJECT = tomllib.loads((PROJECT_ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SENT = re.findall(r"^!(\S+)$", (PROJECT_ROOT / ".dockerignore").read_text(encoding="utf-8"), re.M)


def test_the_linter_finds_nothing():
    done = subprocess.run([LINTER, PROJECT_ROOT / "Dockerfile"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_what_is_copied_is_sent_to_the_builder():
    copied = [word for line in re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.M) for word in line.split()]
    named = [word for word in copied if not word.startswith("--") and word != "."]
    assert named
    for word in named:
        assert (PROJECT_ROOT / word).is_file()
        assert word.split("/")[0] in SENT


def test_every_package_and_data_file_is_sent_to_the_builder():
    packages = {name.rstrip("*") for name in PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]}
    data = {path.split("/")[0] for paths in PROJECT["tool"]["setuptools"]["data-files"].values() for path in paths}
    assert packages | data | {"pyproject.toml", "README.md", "LICENSE"} <= set(SENT)


@pytest.mark.parametrize("extras", [*re.findall(r"^ARG EXTRAS=(\S+)", DOCKERFILE, re.M), "s3,cuda", ""])
def test_its_requirements_are_those_of_the_project(extras):
    script = PROJECT_ROOT / "deploy" / "requirements.py"
    done = subprocess.run(
        [sys.executable, script, extras], cwd=PROJECT_ROOT, capture_output=True, text=True, check=True
    )
    optional = PROJECT["project"]["optional-dependencies"]
    wanted = [line for extra in extras.split(",") if extra for line in optional[extra]]
    assert done.stdout.splitlines() == [*PROJECT["project"]["dependencies"], *wanted]


def test_it_runs_as_a_user_under_an_init_process():
    assert f"USER {job_templates.USER_ID}:{job_templates.USER_ID}" in DOCKERFILE
    assert f"useradd --uid {job_templates.USER_ID} " in DOCKERFILE
    assert f"TUNEYARD_HOME={job_templates.STATE_FOLDER} " in DOCKERFILE
    assert 'ENTRYPOINT ["tini", "--", "tuneyard-entrypoint"]' in DOCKERFILE


def test_its_python_is_one_that_tuneyard_runs_on():
    assert "ARG BASE=debian:bookworm-slim" in DOCKERFILE  # has Python 3.11
    assert PROJECT["project"]["requires-python"] == ">=3.11,<3.13"


def test_its_wheel_has_every_file_that_is_needed_at_run_time(tmp_path):
    """Made as in the image: from what is sent to the builder, and nothing else of the checkout."""
    source = tmp_path / "source"
    source.mkdir()
    for name in SENT:
        path = PROJECT_ROOT / name
        copy = shutil.copytree if path.is_dir() else shutil.copy
        copy(path, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    done = subprocess.run([*command, "--wheel-dir", tmp_path, source], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    packed = set(zipfile.ZipFile(wheel).namelist())
    packages = [name.rstrip("*") for name in PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]]
    code = {path for name in packages for path in (PROJECT_ROOT / name).rglob("*.py")}
    patterns = ("sft/chat/jinja/*.jinja", "sft/chat/ollama/*.gotmpl", "*/py.typed")
    data = {path for pattern in patterns for path in PROJECT_ROOT.glob(pattern)}
    needed = {path.relative_to(PROJECT_ROOT).as_posix() for path in code | data}
    assert any("migrations/versions" in name for name in needed)
    assert needed - packed == set()
    shared = {name.partition("/share/tuneyard/")[2] for name in packed if "/share/tuneyard/" in name}
    datasets = [path for path in (PROJECT_ROOT / "datasets").rglob("*.*") if path.is_file()]
    assert {"prefect.yaml", "dvc.yaml", "constraints.txt"} <= shared
    assert {path.relative_to(PROJECT_ROOT).as_posix() for path in datasets} <= shared
