"""The pages of docs/: what is made from the code is up to date, the site builds, the examples import what exists."""

import ast
import os
import re
import runpy
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
WRITTEN = [
    ROOT / "README.md",
    *DOCS.glob("*.md"),
    *DOCS.glob("[ehr]*/*.md"),
]  # contract/ is quoted, decisions/ are history
BLOCKS = [
    pytest.param(code, id=f"{page.relative_to(ROOT)}-{number}")
    for page in sorted(WRITTEN)
    for number, code in enumerate(
        re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S), 1
    )
]


def test_the_settings_page_is_made_from_the_settings():
    maker = runpy.run_path(str(DOCS / "settings_page.py"))

    assert maker["PAGE"].read_text(encoding="utf-8") == maker["render"](), "run `make docs`"


def test_the_site_builds_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)

    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    for page in tmp_path.rglob("*.html"):
        loaded = re.findall(r'<(?:script|link|img|iframe)[^>]* (?:src|href)="?(https?:[^ ">]+)', page.read_text())
        assert loaded == [], page


def test_every_written_page_is_listed_on_the_site():
    listed = re.findall(r"[\w/-]+\.md", yaml.safe_dump(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    pages = {page.relative_to(DOCS).as_posix() for page in WRITTEN[1:]}

    assert pages <= set(listed)


@pytest.mark.parametrize("code", BLOCKS)
def test_examples_in_python_import_what_exists(code: str):
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and node.module:
            module = import_module(node.module)
            assert all(hasattr(module, name.name) for name in node.names)
