"""Generate the blocking client's files in `tuneyard_client` from those for asyncio. A test checks them.

python client/generate_sync.py [FOLDER]
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import unasync

PACKAGE = Path(__file__).resolve().parent.parent / "tuneyard_client"
FILES = {
    "async_client.py": "client.py",
    "async_configs.py": "sync_configs.py",
    "async_datasets.py": "sync_datasets.py",
    "async_models.py": "sync_models.py",
}
NOTE = "# Generated from {} by client/generate_sync.py; do not edit.\n"
TITLES = {
    "`AsyncTuneyard`: the client for asyncio": "`Tuneyard`: the blocking client",
    "for asyncio": "for the blocking client",
}
WORDS = {
    "AsyncTuneyard": "Tuneyard",
    "AsyncConfigs": "Configs",
    "AsyncDatasets": "Datasets",
    "AsyncBaseModels": "BaseModels",
    "AsyncFollow": "Follow",
    "AsyncRun": "Run",
    "async_configs": "sync_configs",
    "async_datasets": "sync_datasets",
    "async_models": "sync_models",
    "AsyncClient": "Client",
    "aclose": "close",
    "aiter_bytes": "iter_bytes",
    "aread": "read",
    "async_sleep": "sleep",
    "async_run": "run",
    "asynccontextmanager": "contextmanager",
}


def generate(folder: Path) -> None:
    """Write the files without asyncio into `folder`."""
    for written, made in FILES.items():
        _generate(PACKAGE / written, folder / made)


def _generate(written: Path, target: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source, made = Path(folder, "from", "client.py"), Path(folder, "to", "client.py")
        source.parent.mkdir()
        shutil.copy(written, source)
        rule = unasync.Rule(f"{source.parent}/", f"{made.parent}/", additional_replacements=WORDS)
        unasync.unasync_files([str(source)], [rule])
        text = made.read_text(encoding="utf-8")
        for asynchronous, blocking in TITLES.items():
            text = text.replace(asynchronous, blocking)
        target.write_text(NOTE.format(written.name) + text, encoding="utf-8")
    config = str(PACKAGE.parent / "pyproject.toml")
    for command in (["check", "--fix", "--select", "I"], ["format"]):
        subprocess.run([sys.executable, "-m", "ruff", *command, "-q", "--config", config, str(target)], check=True)


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else PACKAGE)
