"""Where the code and its files are found, and that a wheel has all of both; tests/e2e/test_installed.py runs one."""

import ast
import os
import tomllib
from pathlib import Path

import pytest
from setuptools import find_packages

from jobs import project
from jobs.project import PROJECT_ROOT, code_environment, find_sources
from sft.chat.named_templates import TEMPLATES
from sft.errors import StackError
from tasks.dataset_registry import find_sources as find_registry_sources

SETUPTOOLS = tomllib.loads((PROJECT_ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
INCLUDED = SETUPTOOLS["packages"]["find"]["include"]
TOPS = {pattern.removesuffix("*") for pattern in INCLUDED}


def test_the_wheel_has_every_package() -> None:
    files = [file for top in TOPS for file in (PROJECT_ROOT / top).rglob("*.py")]
    found = {".".join(file.parent.relative_to(PROJECT_ROOT).parts) for file in files}
    assert found == set(find_packages(str(PROJECT_ROOT), include=INCLUDED))
    assert "datasets" not in TOPS


def test_the_wheel_has_every_file_beside_the_code() -> None:
    patterns = SETUPTOOLS["package-data"]
    shipped = {file for name in patterns for one in patterns[name] for file in _folder(name).glob(one)}
    beside = {
        file
        for top in TOPS
        for file in (PROJECT_ROOT / top).rglob("*")
        if file.is_file() and file.suffix not in (".py", ".pyc", ".md")
    }
    assert beside == shipped
    templates = {file.name for file in shipped if file.suffix == ".jinja"}
    assert {f"{template.file}.jinja" for template in TEMPLATES.values()} == templates


def _folder(package: str) -> Path:
    return PROJECT_ROOT.joinpath(*package.split("."))


def test_the_wheel_has_every_file_that_is_read_from_the_project() -> None:
    shipped = {
        file.relative_to(PROJECT_ROOT)
        for patterns in SETUPTOOLS["data-files"].values()
        for pattern in patterns
        for file in PROJECT_ROOT.glob(pattern)
    }
    assert {*find_registry_sources(PROJECT_ROOT), Path("prefect.yaml"), Path("constraints.txt")} <= shipped


def test_such_files_are_asked_of_find_sources_alone() -> None:
    """In a wheel they do not lie beside the code."""
    for file in (file for top in TOPS for file in (PROJECT_ROOT / top).rglob("*.py") if file.name != "project.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.BinOp) and ast.unparse(node.left).endswith("PROJECT_ROOT"):
                assert ast.unparse(node.right) in ("'flows'", "'jobs'", "'sft'", "'tasks'"), f"{file}:{node.lineno}"


def test_an_installation_without_them_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_sources() == PROJECT_ROOT
    monkeypatch.setattr(project, "PROJECT_ROOT", tmp_path)
    monkeypatch.setattr(project.importlib.metadata, "files", lambda _: None)
    with pytest.raises(StackError, match=r"prefect\.yaml is missing from this installation"):
        find_sources()


def test_processes_run_the_code_of_this_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    root = str(PROJECT_ROOT)
    assert code_environment({"PYTHONPATH": "/x"})["PYTHONPATH"] == f"{root}{os.pathsep}/x"
    assert code_environment({"PYTHONPATH": root, "A": "b"}) == {"PYTHONPATH": root, "PYTHONUTF8": "1", "A": "b"}
    assert code_environment({}) == {"PYTHONPATH": root, "PYTHONUTF8": "1"}
    monkeypatch.setattr(project, "is_checkout", lambda: False)
    assert code_environment({"PYTHONUTF8": "0"}) == {"PYTHONUTF8": "1"}
