"""Generate `tuneyard_client/client.py` from `async_client.py`. A test checks that it is up to date.

python client/generate_sync.py [FILE]
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import unasync

PACKAGE = Path(__file__).resolve().parent.parent / "tuneyard_client"
NOTE = "# Generated from async_client.py by client/generate_sync.py; do not edit.\n"
TITLES = "`AsyncTuneyard`: the client for asyncio", "`Tuneyard`: the blocking client"
WORDS = {
    "AsyncTuneyard": "Tuneyard",
    "AsyncConfigs": "Configs",
    "AsyncDatasets": "Datasets",
    "AsyncRun": "Run",
    "AsyncClient": "Client",
    "aclose": "close",
    "aiter_bytes": "iter_bytes",
    "aread": "read",
    "async_sleep": "sleep",
    "async_run": "run",
    "asynccontextmanager": "contextmanager",
}


def generate(target: Path) -> None:
    """Write the client without asyncio to `target`."""
    with tempfile.TemporaryDirectory() as folder:
        source, made = Path(folder, "from", "client.py"), Path(folder, "to", "client.py")
        source.parent.mkdir()
        shutil.copy(PACKAGE / "async_client.py", source)
        rule = unasync.Rule(f"{source.parent}/", f"{made.parent}/", additional_replacements=WORDS)
        unasync.unasync_files([str(source)], [rule])
        text = made.read_text(encoding="utf-8").replace(*TITLES)
        target.write_text(NOTE + text, encoding="utf-8")
    config = str(PACKAGE.parent / "pyproject.toml")
    for command in (["check", "--fix", "--select", "I"], ["format"]):
        subprocess.run([sys.executable, "-m", "ruff", *command, "-q", "--config", config, str(target)], check=True)


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else PACKAGE / "client.py")
