"""docs/operations/: the commands, options, files and variables that are named exist."""

import os
import re
import shlex
import subprocess
import sys

import pytest
import yaml

from jobs.project import PROJECT_ROOT
from jobs.stack import deployments, job_templates
from jobs.stack.work_pools import KINDS
from tests.deploy.compose_file import FOLDER, read_compose

PAGES = PROJECT_ROOT / "docs" / "operations"
TEXTS = {page.stem: page.read_text(encoding="utf-8") for page in PAGES.glob("*.md")}
ALL = "\n".join(TEXTS.values())
MANIFESTS = "\n".join(path.read_text(encoding="utf-8") for path in FOLDER.rglob("*.yaml"))


def test_every_command_of_a_worker_has_options_that_exist():
    help_text = subprocess.run(
        [sys.executable, "-m", "prefect", "worker", "start", "--help"],
        env=os.environ | {"COLUMNS": "240"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    shown = re.findall(r"prefect worker start ((?:-|\")[^\n`#]*)", ALL)
    assert len(shown) >= 6
    for line in shown:
        words = shlex.split(line)
        assert all(word in help_text for word in words if word.startswith("--")), line
        assert words[words.index("--type") + 1] in KINDS
        if words[words.index("--type") + 1] != "kubernetes":
            assert words[words.index("--limit") + 1] == "1", line
    for service in (read_compose("compose.yaml")["services"]["worker"]["command"],):
        assert all(word in help_text for word in service if word.startswith("--"))
    worker = yaml.safe_load((FOLDER / "kubernetes" / "worker.yaml").read_text())
    words = worker["spec"]["template"]["spec"]["containers"][0]["args"]
    assert words[:3] == ["prefect", "worker", "start"]
    assert all(word.partition("=")[0] in help_text for word in words[3:])


@pytest.mark.parametrize("kind", ["docker", "kubernetes"])
def test_the_variables_of_a_pool_are_those_of_its_template(kind):
    properties = job_templates.make_template(kind)["variables"]["properties"]
    table = TEXTS[kind].partition("| variable of the pool |")[2].partition("\n\n")[0]
    named = {name for row in table.splitlines()[2:] for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert named
    assert named <= set(properties)


def test_the_files_that_are_named_are_there():
    named = set(re.findall(r"deploy/[\w./-]*\w", ALL)) - {"deploy/tuneyard-api"}
    made = {"deploy/secrets", "deploy/secrets/trainer-database-url", "deploy/secrets/s3-key"}
    assert {path for path in named - made if not (PROJECT_ROOT / path).exists()} == set()


def test_variables_of_the_compose_file_are_those_of_the_page():
    used = set(re.findall(r"\$\{(\w+):-", (FOLDER / "compose.yaml").read_text(encoding="utf-8")))
    table = TEXTS["compose"].partition("## Settings")[2]
    assert used - {"PREFECT_UI_API_URL"} <= set(re.findall(r"`(\w+)`", table))


def test_build_arguments_are_those_of_the_dockerfile():
    made = set(re.findall(r"^ARG (\w+)", (PROJECT_ROOT / "Dockerfile").read_text(encoding="utf-8"), re.M))
    table = TEXTS["image"].partition("| build argument |")[2].partition("\n\n")[0]
    assert set(re.findall(r"^\| `(\w+)`", table, re.M)) == made


def test_every_way_has_a_page_that_the_overview_links():
    assert set(re.findall(r"\]\(([\w-]+)\.md\)", TEXTS["index"])) == set(TEXTS) - {"index"}


def test_manifests_run_what_exists():
    """The program of each container: a command of ours, or one that the image's packages install."""
    names = [entry["name"] for entry in deployments.read_deployments()]
    assert names == ["sft", "retrain"]
    run = set(re.findall(r"python,? -m,? ([\w.]+)", MANIFESTS))
    assert run == {"jobs.watchdog"}
