"""The pages of docs/: what is made from the code is up to date, the site builds, the examples import what exists."""

import ast
import os
import re
import runpy
import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import typer
import yaml

import jobs.errors
import sft.errors
from cli.__main__ import main
from sft.errors import TuneyardError
from tasks import causes, serving, tokenize
from tuneyard_cli.__main__ import make_app
from tuneyard_cli.machine import SERVICE_COMMANDS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
WRITTEN = [
    ROOT / "README.md",
    *DOCS.glob("*.md"),
    *DOCS.glob("[ehor]*/*.md"),
]  # contract/ is quoted, decisions/ are history
BLOCKS = [
    pytest.param(code, id=f"{page.relative_to(ROOT)}-{number}")
    for page in sorted(WRITTEN)
    for number, code in enumerate(
        re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S), 1
    )
]


OF_REQUESTS = {  # answers to a request, or the base of others: no job fails with one
    *("invalid_saved_config", "invalid_cursor", "job_not_found", "config_not_found", "job_conflict", "training_busy"),
    *("adapter_not_ready", "adapter_not_found", "idempotency_key_reused", "planning_failed", "training_diverged"),
    *("api_key_not_found", "delivery_not_found", "name_taken", "dataset_in_use", "adding_failed"),
    *("upload_too_large", "upload_not_found", "invalid_upload"),
    *("generation_busy", "generation_failed", "context_length_exceeded", "invalid_prompt"),
    *("upload_conflict", "model_exists", "model_in_use", "model_protected"),
}


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


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: page.name)
def test_commands_that_are_shown_exist_with_their_options(page: Path):
    text = page.read_text(encoding="utf-8")
    shown = "\n".join(re.findall(r"^```(?:bash|console|sh)\n(.*?)^```", text, re.M | re.S))
    shown = "\n".join([shown, *re.findall(r"(?<!`)`(tuneyard [^`\n]+)`(?!`)", text)])
    for line in re.findall(r"(?:^|; |\$ )(tuneyard [^;#\n]+)", shown, re.M):
        words = [word for word in shlex.split(line)[1:] if word != "COMMAND"]
        command = typer.main.get_command(main)
        context = command.context_class(command)
        while hasattr(command, "get_command") and words and not words[0].startswith("-"):
            name = words.pop(0)
            command = command.get_command(context, name)
            assert command is not None, f"{name} in {line!r}"
            context = command.context_class(command)
        command.make_parser(context).parse_args(words)  # which an unknown option ends


def test_the_readme_shows_what_a_job_does_as_it_does_it():
    shown = re.findall(r"^• (.+)$", (ROOT / "README.md").read_text(encoding="utf-8"), re.M)
    entered = [tokenize.PHASE, "loading model", "training", "evaluating", serving.CHECKING, "registering"]
    sources = "".join(file.read_text(encoding="utf-8") for file in (ROOT / "tasks").glob("*.py"))
    assert shown == entered
    assert [phase for phase in entered if f'"{phase}"' not in sources] == []


def test_the_page_of_the_command_line_names_the_commands_of_the_full_package():
    page = (DOCS / "reference/command-line.md").read_text(encoding="utf-8")
    named = page.partition("`up`")[1] + page.partition("`up`")[2].partition("need the full package")[0]
    alone = {*typer.main.get_command(make_app("")).commands}
    full = {*typer.main.get_command(main).commands} - alone
    assert full == set(SERVICE_COMMANDS)
    assert full | {"plan --here", "models add --here"} == set(re.findall(r"`([a-z -]+)`", named))


def test_the_page_of_the_api_has_every_code_that_a_job_can_fail_with():
    table = (
        (DOCS / "reference/api.md").read_text(encoding="utf-8").partition("| `error_code` |")[2].partition("\n\n")[0]
    )
    listed = set(re.findall(r"`([a-z_]+)`", table))
    names = {**vars(jobs.errors), **vars(sft.errors)}
    kinds = [kind for kind in names.values() if isinstance(kind, type) and issubclass(kind, TuneyardError)]
    codes = {kind.code for kind in kinds} | {code for _, code, *_ in causes._KINDS}
    assert codes - listed == OF_REQUESTS


@pytest.mark.parametrize("code", BLOCKS)
def test_examples_in_python_import_what_exists(code: str):
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and node.module:
            module = import_module(node.module)
            assert all(hasattr(module, name.name) for name in node.names)
