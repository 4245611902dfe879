"""Write `tuneyard_client/client.py` from `async_client.py`. A test runs it again and compares.

python client/generate_sync.py [FILE]
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import unasync

PACKAGE = Path(__file__).resolve().parent.parent / "tuneyard_client"
NOTE = "# Written by client/generate_sync.py from async_client.py: change that one.\n"
TITLES = "`AsyncTuneyard`: the service from asyncio", "`Tuneyard`: the service from Python"
WORDS = {
    "AsyncTuneyard": "Tuneyard",
    "AsyncConfigs": "Configs",
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
    """The client without asyncio."""
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
