"""What a newcomer reads and runs: every link leads somewhere, every named command exists."""

import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("datasets/*.md")]
)
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


@pytest.mark.parametrize("page", PAGES)
def test_every_link_between_pages_leads_somewhere(page: str):
    source = ROOT / page
    links = re.findall(r"\]\((?!https?:|mailto:)([^)#\s]*)(?:#[^)\s]*)?\)", source.read_text(encoding="utf-8"))

    assert [link for link in links if link and not (source.parent / link).exists()] == []


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "docs/security.md"])
def test_every_make_target_that_is_named_exists(page: str):
    named = re.findall(r"^(?:\$ )?make ([a-z][a-z-]+)", "\n".join(_code_of(ROOT / page)), re.MULTILINE)

    assert named
    assert set(named) <= TARGETS


def run_make(*arguments: str) -> str:
    """What make prints, also where the tests themselves are run by one."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    done = subprocess.run(["make", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    return done.stdout


def test_help_lists_every_target():
    shown = run_make("help")

    assert {line.split()[0] for line in shown.splitlines()} == TARGETS


def test_commits_and_pull_requests_are_checked_by_the_documented_commands():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0]["hooks"]
    job = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text(encoding="utf-8"))["jobs"]["make"]
    rules = run_make("-n", "test")

    assert [hook["entry"] for hook in hooks] == ["make check"]
    assert job["steps"][-1]["run"] == "make ${{ matrix.target }}"
    assert job["strategy"]["matrix"]["target"] == ["demo", "test"]
    assert all(check in rules for check in ("ruff check", "ruff format --check", "lint-imports", "mypy", "pytest"))


def _code_of(page: Path) -> list[str]:
    """The spans and blocks of code of a page, where commands stand."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [*blocks, *re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text)]


def test_the_architecture_page_has_the_import_rules():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    for package in ("jobs", "sft"):
        (layers,) = [contract["layers"] for contract in contracts if contract.get("containers") == [package]]
        section = page.partition(f"### The folders of `{package}`")[2].partition("\n#")[0]
        rows = re.findall(r"^\| (`.*?`) \|", section, re.MULTILINE)

        assert [re.findall(r"`(\w+)`", row) for row in rows] == [re.findall(r"\w+", layer) for layer in layers]


def test_every_folder_of_code_says_in_a_sentence_what_is_in_it():
    folders = {path.parent for top in ("jobs", "sft", "cli", "tuneyard_cli") for path in (ROOT / top).rglob("*.py")}

    assert [
        folder for folder in folders if not (folder / "__init__.py").read_text(encoding="utf-8").startswith('"""')
    ] == []
