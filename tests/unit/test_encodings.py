"""What other programs say is UTF-8 whatever the locale: with LANG=C Python would take it for ASCII and fail."""

import ast
import os
import subprocess
import sys

import pytest

from jobs.settings import PROJECT_ROOT

FOLDERS = ("api", "app", "cli", "flows", "jobs", "sft", "tasks", "tuneyard_cli", "tuneyard_client", "tuneyard_wire")
PLAIN = {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_output_is_decoded_by_the_locale(folder):
    found = []
    for path in sorted((PROJECT_ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                names = {keyword.arg for keyword in node.keywords}
                if names & {"text", "universal_newlines"} and names & {"capture_output", "stdout"}:
                    found += [f"{path.name}:{node.lineno}"] if "encoding" not in names else []
    assert found == []


def test_git_is_understood_in_the_plainest_locale(tmp_path):
    code = (
        "import pathlib, sys; from tasks.dataset_registry import git; place = pathlib.Path(sys.argv[1]);"
        "git(place, 'init', '-q'); print(ascii(git(place, 'rev-parse', '--show-prefix', '--show-toplevel')))"
    )
    folder = tmp_path / "M\u00fcller"
    folder.mkdir()
    command = [sys.executable, "-c", code, folder]
    done = subprocess.run(command, env=os.environ | PLAIN, cwd=PROJECT_ROOT, capture_output=True, check=False)
    assert b"M\\xfcller" in done.stdout, done.stderr.decode()
